package guestagent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/example/kubevirt-imds/tools/e2e/qemu/qmp"
)

// Client tells a guest's program what to do. Its methods may be called from several goroutines.
type Client struct{ *qmp.Conn }

// Boots is how often the guest has booted so far.
func (c Client) Boots() (boots int) {
	for _, event := range c.Events() {
		if event.Name == qmp.Booted {
			boots++
		}
	}
	return boots
}

// AwaitBoot returns when the guest has booted more than that many times.
func (c Client) AwaitBoot(ctx context.Context, boots int) error {
	_, err := c.Await(ctx, 0, func(event qmp.Event) bool {
		if event.Name == qmp.Booted {
			boots--
		}
		return boots < 0
	})
	return err
}

// call makes a request and decodes the reply.
func call[R any](ctx context.Context, c Client, operation string, arguments any) (result R, err error) {
	reply, err := c.Execute(ctx, operation, arguments)
	if err == nil {
		err = json.Unmarshal(reply, &result)
	}
	if err != nil {
		err = fmt.Errorf("guest: %w", err)
	}
	return result, err
}

// Run runs a command in the guest's shell to its end. That it fails is no error.
func (c Client) Run(ctx context.Context, r Run) (Ran, error) { return call[Ran](ctx, c, opRun, r) }

// Shell runs a command that must succeed, and returns what it wrote.
func (c Client) Shell(ctx context.Context, command string) (string, error) {
	ran, err := c.Run(ctx, Run{Command: command})
	if err == nil && ran.Exit != 0 {
		err = fmt.Errorf("guest: %s: exit status %d: %s", command, ran.Exit, bytes.TrimSpace([]byte(ran.Output)))
	}
	return ran.Output, err
}

// Get makes one HTTP request. That it fails is no error.
func (c Client) Get(ctx context.Context, g Get) (Got, error) { return call[Got](ctx, c, opGet, g) }

// NAT sets up the guest's NAT.
func (c Client) NAT(ctx context.Context, n NAT) error {
	_, err := call[any](ctx, c, opNAT, n)
	return err
}

// Task is a request that goes on in the guest, and replies with an R.
type Task[R any] struct {
	client Client
	number int
}

func start[R any](ctx context.Context, c Client, operation string, arguments any) (*Task[R], error) {
	number, err := call[int](ctx, c, operation, arguments)
	return &Task[R]{c, number}, err
}

// Wait returns the reply of a task that ends by itself.
func (t *Task[R]) Wait(ctx context.Context) (R, error) {
	return call[R](ctx, t.client, opEnd, end{Task: t.number})
}

// Stop ends the task and returns its reply.
func (t *Task[R]) Stop(ctx context.Context) (R, error) {
	return call[R](ctx, t.client, opEnd, end{Task: t.number, Stop: true})
}

// Ask begins to ask.
func (c Client) Ask(ctx context.Context, a Ask) (*Task[Asked], error) {
	return start[Asked](ctx, c, opAsk, a)
}

// Send begins to send.
func (c Client) Send(ctx context.Context, s Send) (*Task[Sent], error) {
	return start[Sent](ctx, c, opSend, s)
}

// Sniff begins to record.
func (c Client) Sniff(ctx context.Context, s Sniff) (*Task[Sniffed], error) {
	return start[Sniffed](ctx, c, opSniff, s)
}

// Hold begins to open connections.
func (c Client) Hold(ctx context.Context, h Hold) (*Task[Held], error) {
	return start[Held](ctx, c, opHold, h)
}
