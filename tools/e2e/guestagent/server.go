package guestagent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/example/kubevirt-imds/tools/e2e/qemu/qmp"
)

// The operations. All but the last have arguments of the type of that name.
const (
	opRun   = "run"
	opGet   = "get"
	opNAT   = "nat"
	opAsk   = "ask"
	opSend  = "send"
	opSniff = "sniff"
	opHold  = "hold"
	opEnd   = "end"
)

// end waits for the end of a task, by its number, or makes it end. The reply is the task's.
type end struct {
	Task int  `json:"task"`
	Stop bool `json:"stop"`
}

// Operations are what a guest's program can do. Those that go on call begun once what they need is there, and end,
// with what they have seen so far, when their context does.
type Operations struct {
	Run   func(Run) (Ran, error)
	Get   func(Get) (Got, error)
	NAT   func(NAT) (any, error)
	Ask   func(ctx context.Context, a Ask, begun func()) (Asked, error)
	Send  func(ctx context.Context, s Send, begun func()) (Sent, error)
	Sniff func(ctx context.Context, s Sniff, begun func()) (Sniffed, error)
	Hold  func(ctx context.Context, h Hold, begun func()) (Held, error)
}

// Serve says that the guest has booted, and does what it is told, each request beside the others, until there is
// nothing more to read.
func Serve(port io.ReadWriter, o Operations) error {
	s := &server{port: port}
	operations := map[string]func(json.RawMessage) (any, error){
		opRun: brief(o.Run), opGet: brief(o.Get), opNAT: brief(o.NAT), opEnd: brief(s.end),
		opAsk: goesOn(s, o.Ask), opSend: goesOn(s, o.Send), opSniff: goesOn(s, o.Sniff), opHold: goesOn(s, o.Hold),
	}
	// The line before may be one that a reboot cut off.
	if _, err := io.WriteString(port, "\n"); err != nil {
		return err
	}
	s.say(qmp.Message{Event: qmp.Booted})
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var request qmp.Request
		if json.Unmarshal(line, &request) != nil {
			continue // a line from before the boot
		}
		go func() {
			do := operations[request.Execute]
			if do == nil {
				do = func(json.RawMessage) (any, error) { return nil, fmt.Errorf("no operation %q", request.Execute) }
			}
			result, err := do(request.Arguments)
			m := qmp.Message{ID: request.ID}
			if err == nil {
				m.Return, err = json.Marshal(result)
			}
			if err != nil {
				m.Error = &qmp.Error{Desc: err.Error()}
			}
			s.say(m)
		}()
	}
}

type server struct {
	mu    sync.Mutex // guards what follows, and whole lines on the port
	port  io.Writer
	tasks []*task // by their numbers
}

// task is something that goes on.
type task struct {
	stop   context.CancelFunc
	ended  chan struct{}
	result any
	err    error
}

// say writes a line. Where the port is gone nobody can be told.
func (s *server) say(m qmp.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	json.NewEncoder(s.port).Encode(m)
}

func brief[A, R any](do func(A) (R, error)) func(json.RawMessage) (any, error) {
	return func(arguments json.RawMessage) (any, error) {
		var a A
		if err := json.Unmarshal(arguments, &a); err != nil {
			return nil, err
		}
		return do(a)
	}
}

// goesOn is an operation that makes a task and returns its number.
func goesOn[A, R any](s *server, do func(context.Context, A, func()) (R, error)) func(json.RawMessage) (any, error) {
	return brief(func(a A) (int, error) {
		ctx, stop := context.WithCancel(context.Background())
		t := &task{stop: stop, ended: make(chan struct{})}
		begun := make(chan struct{})
		go func() {
			defer close(t.ended)
			t.result, t.err = do(ctx, a, func() { close(begun) })
		}()
		select {
		case <-begun:
		case <-t.ended: // it may have begun, too
			if t.err != nil {
				return 0, t.err
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tasks = append(s.tasks, t)
		return len(s.tasks) - 1, nil
	})
}

func (s *server) end(e end) (any, error) {
	s.mu.Lock()
	t := s.tasks[e.Task]
	s.mu.Unlock()
	if e.Stop {
		t.stop()
	}
	<-t.ended
	return t.result, t.err
}
