package hand

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Operations are what a guest's program can do. Each ends, with what it has seen so far, when its context does.
type Operations struct {
	Run   func(context.Context, Run) (Ran, error)
	Get   func(context.Context, Get) (Got, error)
	Ask   func(context.Context, Ask) (Asked, error)
	Send  func(context.Context, Send) (Sent, error)
	Sniff func(context.Context, Sniff) (Sniffed, error)
	Hold  func(context.Context, Hold) (Held, error)
}

// operation is one of them, with its arguments and its reply in JSON.
type operation func(ctx context.Context, args json.RawMessage) (json.RawMessage, error)

func encoded[A, R any](do func(context.Context, A) (R, error)) operation {
	return func(ctx context.Context, args json.RawMessage) (json.RawMessage, error) {
		var a A
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, err
		}
		result, err := do(ctx, a)
		if err != nil {
			return nil, err
		}
		return json.Marshal(result)
	}
}

// Serve says that the guest has booted, and does what it is told, each request beside the others, until there is
// nothing more to read.
func Serve(port io.ReadWriter, o Operations) error {
	s := &server{port: port, stops: map[uint64]context.CancelFunc{}, operations: map[string]operation{
		opRun: encoded(o.Run), opGet: encoded(o.Get), opAsk: encoded(o.Ask),
		opSend: encoded(o.Send), opSniff: encoded(o.Sniff), opHold: encoded(o.Hold),
	}}
	// The line before may be one that a reboot cut off.
	if _, err := io.WriteString(port, "\n"); err != nil {
		return err
	}
	s.reply(message{Op: opBooted})
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			continue // a line from before the boot
		}
		s.take(m)
	}
}

type server struct {
	port       io.Writer
	operations map[string]operation

	mu    sync.Mutex // guards what follows, and whole lines on the port
	stops map[uint64]context.CancelFunc
}

// take begins a request.
func (s *server) take(m message) {
	if m.Op == opStop {
		s.stop(m)
		return
	}
	do := s.operations[m.Op]
	if do == nil {
		s.reply(message{ID: m.ID, Error: fmt.Sprintf("no operation %q", m.Op)})
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s.mu.Lock()
	s.stops[m.ID] = stop
	s.mu.Unlock()
	go func() {
		result, err := do(ctx, m.Args)
		s.mu.Lock()
		delete(s.stops, m.ID)
		s.mu.Unlock()
		stop()
		if err != nil {
			s.reply(message{ID: m.ID, Error: err.Error()})
			return
		}
		s.reply(message{ID: m.ID, Result: result})
	}()
}

func (s *server) stop(m message) {
	var id uint64
	if err := json.Unmarshal(m.Args, &id); err != nil {
		s.reply(message{ID: m.ID, Error: err.Error()})
		return
	}
	s.mu.Lock()
	stop := s.stops[id]
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	s.reply(message{ID: m.ID, Result: json.RawMessage("true")})
}

// reply writes a line. Where the port is gone nobody can be told.
func (s *server) reply(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		line, _ = json.Marshal(message{ID: m.ID, Error: err.Error()})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.port.Write(append(line, '\n'))
}
