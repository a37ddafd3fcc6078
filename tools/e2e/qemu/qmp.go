package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Event is something that QEMU has told, such as RESET or RESUME (QEMU's QMP reference lists them).
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time // of this machine's clock, by QEMU
}

// monitor is QEMU's side channel, the QEMU Machine Protocol.
type monitor struct {
	socket io.ReadWriteCloser
	read   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	next    int
	pending map[int]chan<- answer
	events  []Event
	arrived chan struct{} // closed at each event, and made anew, and at the end
	ended   error
}

type answer struct {
	result json.RawMessage
	err    error
}

// openMonitor takes over a socket at whose other end QEMU begins to speak.
func openMonitor(ctx context.Context, socket io.ReadWriteCloser) (*monitor, error) {
	m := &monitor{socket: socket, pending: map[int]chan<- answer{}, arrived: make(chan struct{})}
	m.read.Go(m.receive)
	_, err := m.execute(ctx, "qmp_capabilities", nil)
	return m, err
}

// execute has QEMU do something. arguments may be nil.
func (m *monitor) execute(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	done, err := m.begin(command, arguments)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		if a.err != nil {
			return nil, fmt.Errorf("qemu: %s: %w", command, a.err)
		}
		return a.result, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("qemu: %s: %w", command, context.Cause(ctx))
	}
}

func (m *monitor) begin(command string, arguments any) (<-chan answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		return nil, fmt.Errorf("qemu: %s: %w", command, m.ended)
	}
	m.next++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, m.next})
	if err != nil {
		return nil, err
	}
	if _, err := m.socket.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("qemu: %s: %w", command, err)
	}
	done := make(chan answer, 1)
	m.pending[m.next] = done
	return done, nil
}

// position is how many events there were so far, for await.
func (m *monitor) position() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events)
}

// await returns the first event from a position on that matches.
func (m *monitor) await(ctx context.Context, position int, matches func(Event) bool) (Event, error) {
	for {
		m.mu.Lock()
		events, arrived, ended := m.events[position:], m.arrived, m.ended
		m.mu.Unlock()
		if at := slices.IndexFunc(events, matches); at >= 0 {
			return events[at], nil
		}
		if ended != nil {
			return Event{}, ended
		}
		position += len(events)
		select {
		case <-arrived:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// receive takes QEMU's lines until there are no more.
func (m *monitor) receive() {
	lines := json.NewDecoder(bufio.NewReader(m.socket))
	for {
		var line struct {
			ID     *int
			Return json.RawMessage
			Error  *struct{ Desc string }

			Event     string
			Data      json.RawMessage
			Timestamp struct{ Seconds, Microseconds int64 }
		}
		if err := lines.Decode(&line); err != nil {
			m.end()
			return
		}
		m.mu.Lock()
		switch {
		case line.Event != "":
			at := time.Unix(line.Timestamp.Seconds, line.Timestamp.Microseconds*1000)
			m.events = append(m.events, Event{line.Event, line.Data, at})
			close(m.arrived)
			m.arrived = make(chan struct{})
		case line.ID != nil && m.pending[*line.ID] != nil:
			a := answer{result: line.Return}
			if line.Error != nil {
				a.err = errors.New(line.Error.Desc)
			}
			m.pending[*line.ID] <- a
			delete(m.pending, *line.ID)
		}
		m.mu.Unlock()
	}
}

func (m *monitor) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = errors.New("it has ended")
	for id, done := range m.pending {
		delete(m.pending, id)
		done <- answer{err: m.ended}
	}
	close(m.arrived)
}

func (m *monitor) close() {
	m.socket.Close()
	m.read.Wait()
}
