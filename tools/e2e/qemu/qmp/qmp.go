// Package qmp is a client of the QEMU Machine Protocol: lines of JSON, in which each request has a number, and events
// have none. QEMU speaks it, and so does the tests' agent in a guest.
package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Request is a line that asks for something.
type Request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        int             `json:"id"`
}

// Message is a line of the other side.
type Message struct {
	ID        int             `json:"id,omitempty"`     // of the request; 0: it is an event
	Return    json.RawMessage `json:"return,omitempty"` // the reply
	Error     *Error          `json:"error,omitempty"`  // instead of the reply
	Event     string          `json:"event,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Error says why there is no reply.
type Error struct {
	Desc string `json:"desc"`
}

// Event is something that was told without being asked for, such as RESET or RESUME (QEMU's QMP reference lists them).
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time // by who has told it
}

// Booted is the event that a guest's agent tells when it has been started. What it was asked before is not answered.
const Booted = "BOOTED"

// Conn is a connection. Its methods may be called from several goroutines.
type Conn struct {
	next  chan io.ReadWriteCloser // the port that is read when the present one has ended
	ended chan struct{}

	mu      sync.Mutex // guards what follows
	port    io.ReadWriteCloser
	last    int // number of a request
	pending map[int]chan<- Message
	events  []Event
	arrived chan struct{} // closed at each event, and made anew
}

// New takes over a port.
func New(port io.ReadWriteCloser) *Conn {
	c := &Conn{
		next: make(chan io.ReadWriteCloser, 1), ended: make(chan struct{}),
		port: port, pending: map[int]chan<- Message{}, arrived: make(chan struct{}),
	}
	go c.receive(port)
	return c
}

// Move has the connection go over another port from now on, because who is at its other end has moved. The present one is
// read to its end before.
func (c *Conn) Move(port io.ReadWriteCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.port = port
	c.next <- port
}

// Close ends the connection, and fails what is going on.
func (c *Conn) Close() {
	c.mu.Lock()
	c.port.Close()
	c.mu.Unlock()
	<-c.ended
}

var (
	errEnded  = errors.New("the connection has ended")
	errBooted = errors.New("the guest has booted again meanwhile")
)

// receive takes lines until there are no more. One may begin at one port and end at the next.
func (c *Conn) receive(port io.ReadWriteCloser) {
	var rest []byte
	buffer := make([]byte, 1<<16)
	for {
		n, err := port.Read(buffer)
		rest = append(rest, buffer[:n]...)
		for {
			line, after, found := bytes.Cut(rest, []byte("\n"))
			if !found {
				break
			}
			rest = after
			c.deliver(line)
		}
		if err == nil {
			continue
		}
		port.Close()
		select {
		case port = <-c.next:
		default:
			c.mu.Lock()
			defer c.mu.Unlock()
			close(c.ended)
			c.failPending(errEnded)
			return
		}
	}
}

// deliver takes a line. What is no message is the rest of one that a reboot cut off.
func (c *Conn) deliver(line []byte) {
	var m Message
	if json.Unmarshal(line, &m) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Event != "" {
		c.events = append(c.events, Event{m.Event, m.Data, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		close(c.arrived)
		c.arrived = make(chan struct{})
		if m.Event == Booted {
			c.failPending(errBooted)
		}
	} else if waiting := c.pending[m.ID]; waiting != nil {
		delete(c.pending, m.ID)
		waiting <- m
	}
}

func (c *Conn) failPending(err error) {
	for id, waiting := range c.pending {
		delete(c.pending, id)
		waiting <- Message{Error: &Error{err.Error()}}
	}
}

// Execute makes a request and returns the reply. The arguments may be nil.
func (c *Conn) Execute(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	reply, err := c.begin(command, arguments)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-reply:
		if m.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, m.Error.Desc)
		}
		return m.Return, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

func (c *Conn) begin(command string, arguments any) (<-chan Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
		return nil, errEnded
	default:
	}
	c.last++
	request := Request{Execute: command, ID: c.last}
	if arguments != nil {
		var err error
		if request.Arguments, err = json.Marshal(arguments); err != nil {
			return nil, err
		}
	}
	reply := make(chan Message, 1)
	c.pending[c.last] = reply
	return reply, json.NewEncoder(c.port).Encode(request)
}

// Events are those that came so far.
func (c *Conn) Events() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// Await returns the first event, of those that come after a number of them, that matches.
func (c *Conn) Await(ctx context.Context, after int, matches func(Event) bool) (Event, error) {
	for {
		c.mu.Lock()
		events, arrived := c.events[after:], c.arrived
		c.mu.Unlock()
		if at := slices.IndexFunc(events, matches); at >= 0 {
			return events[at], nil
		}
		after += len(events)
		select {
		case <-arrived:
		case <-c.ended:
			return Event{}, errEnded
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}
