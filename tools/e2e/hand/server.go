package hand

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Operations are what a guest's program can do. Those that go on call begun once what they need is there, and end,
// with what they have seen so far, when their context does.
type Operations struct {
	Run func(context.Context, Run) (Ran, error)
	Get func(context.Context, Get) (Got, error)
	NAT func(context.Context, NAT) (NATed, error)

	Ask      func(ctx context.Context, a Ask, begun func()) (Asked, error)
	Send     func(ctx context.Context, s Send, begun func()) (Sent, error)
	Sniff    func(ctx context.Context, s Sniff, begun func()) (Sniffed, error)
	Hold     func(ctx context.Context, h Hold, begun func()) (Held, error)
	HalfOpen func(ctx context.Context, h HalfOpen, begun func()) (HalfOpened, error)
}

// operation is one of them, with its arguments and its reply in JSON.
type operation func(ctx context.Context, args json.RawMessage, begun func()) (json.RawMessage, error)

// brief is an operation that ends by itself, and goesOn one that does not.
func brief[A, R any](do func(context.Context, A) (R, error)) operation {
	return goesOn(func(ctx context.Context, a A, _ func()) (R, error) { return do(ctx, a) })
}

func goesOn[A, R any](do func(context.Context, A, func()) (R, error)) operation {
	return func(ctx context.Context, args json.RawMessage, begun func()) (json.RawMessage, error) {
		var a A
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, err
		}
		result, err := do(ctx, a, begun)
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
		opRun: brief(o.Run), opGet: brief(o.Get), opNAT: brief(o.NAT), opAsk: goesOn(o.Ask),
		opSend: goesOn(o.Send), opSniff: goesOn(o.Sniff), opHold: goesOn(o.Hold), opHalfOpen: goesOn(o.HalfOpen),
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
		result, err := do(ctx, m.Args, func() { s.reply(message{ID: m.ID, Op: opBegun}) })
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
