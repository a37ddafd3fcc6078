package hand

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// errRebooted is the end of requests that the guest was at when it booted again.
var errRebooted = errors.New("the guest has booted again meanwhile")

// Client tells a guest's program what to do. Its methods may be called from several goroutines.
type Client struct {
	ports  chan io.ReadWriteCloser // those that are read after the present one
	closed chan struct{}
	close  sync.Once
	read   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	port    io.Writer
	next    uint64
	pending map[uint64]chan<- message
	boots   int
	booted  chan struct{} // closed at each boot, and made anew, and at the end
	ended   error         // once there is nothing more to read
}

// NewClient returns a client that speaks over a port, and owns it.
func NewClient(port io.ReadWriteCloser) *Client {
	c := &Client{
		ports:   make(chan io.ReadWriteCloser, 1),
		closed:  make(chan struct{}),
		port:    port,
		pending: map[uint64]chan<- message{},
		booted:  make(chan struct{}),
	}
	c.ports <- port
	c.read.Go(c.receive)
	return c
}

// Move has the client speak over another port from now on: that of the QEMU to which the guest was migrated. The
// present one is read to its end before.
func (c *Client) Move(port io.ReadWriteCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.port = port
	c.ports <- port
}

// Close ends the client, and fails what is going on.
func (c *Client) Close() {
	c.close.Do(func() { close(c.closed) })
	c.read.Wait()
}

// receive hands each reply to whoever waits for it. A line may begin at one port and end at the next.
func (c *Client) receive() {
	var rest []byte
	for {
		select {
		case port := <-c.ports:
			rest = c.drain(port, rest)
		case <-c.closed:
			c.fail(errors.New("the connection to the guest is closed"))
			return
		}
	}
}

// drain reads a port to its end, and returns what is left of a line that is not complete.
func (c *Client) drain(port io.ReadWriteCloser, rest []byte) []byte {
	done := make(chan struct{})
	defer close(done)
	defer port.Close()
	go func() {
		select {
		case <-c.closed:
			port.Close()
		case <-done:
		}
	}()
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
		if err != nil {
			return rest
		}
	}
}

// deliver takes a line. What is no message is the rest of one that a reboot cut off.
func (c *Client) deliver(line []byte) {
	var m message
	if json.Unmarshal(line, &m) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Op == opBooted {
		c.boots++
		close(c.booted)
		c.booted = make(chan struct{})
		c.failPending(errRebooted)
		return
	}
	if waiting := c.pending[m.ID]; waiting != nil {
		if m.Op != opBegun {
			delete(c.pending, m.ID)
		}
		waiting <- m
	}
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = err
	close(c.booted)
	c.failPending(err)
}

func (c *Client) failPending(err error) {
	for id, waiting := range c.pending {
		delete(c.pending, id)
		waiting <- message{ID: id, Error: err.Error()}
	}
}

// Boots is how often the guest has booted so far.
func (c *Client) Boots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots
}

// AwaitBoot returns when the guest has booted more than that many times.
func (c *Client) AwaitBoot(ctx context.Context, boots int) error {
	for {
		c.mu.Lock()
		now, booted, ended := c.boots, c.booted, c.ended
		c.mu.Unlock()
		switch {
		case now > boots:
			return nil
		case ended != nil:
			return ended
		}
		select {
		case <-booted:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// begin sends a request. The channel gets its reply.
func (c *Client) begin(op string, args any) (uint64, <-chan message, error) {
	encoded, err := json.Marshal(args)
	if err != nil {
		return 0, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return 0, nil, c.ended
	}
	c.next++
	line, err := json.Marshal(message{ID: c.next, Op: op, Args: encoded})
	if err != nil {
		return 0, nil, err
	}
	if _, err := c.port.Write(append(line, '\n')); err != nil {
		return 0, nil, fmt.Errorf("telling the guest to %s: %w", op, err)
	}
	reply := make(chan message, 2) // that it has begun, and the reply
	c.pending[c.next] = reply
	return c.next, reply, nil
}

// Task is a request that goes on in the guest, and replies with an R.
type Task[R any] struct {
	client *Client
	op     string
	id     uint64
	reply  <-chan message
}

// start begins a request that goes on, and returns when it has what it needs.
func start[R any](ctx context.Context, c *Client, op string, args any) (*Task[R], error) {
	id, messages, err := c.begin(op, args)
	if err != nil {
		return nil, err
	}
	task := &Task[R]{c, op, id, messages}
	m, err := task.next(ctx)
	if err != nil {
		return nil, err
	}
	if m.Op != opBegun { // it has ended already
		reply := make(chan message, 1)
		reply <- m
		task.reply = reply
	}
	return task, nil
}

// next waits for a message about the task.
func (t *Task[R]) next(ctx context.Context) (message, error) {
	select {
	case m := <-t.reply:
		if m.Error != "" {
			return m, fmt.Errorf("guest: %s: %s", t.op, m.Error)
		}
		return m, nil
	case <-ctx.Done():
		return message{}, fmt.Errorf("guest: %s: %w", t.op, context.Cause(ctx))
	}
}

// Wait returns the reply of a task that ends by itself.
func (t *Task[R]) Wait(ctx context.Context) (R, error) {
	var result R
	m, err := t.next(ctx)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(m.Result, &result); err != nil {
		return result, fmt.Errorf("guest: %s: its reply: %w", t.op, err)
	}
	return result, nil
}

// Stop ends the task and returns its reply. It is called once.
func (t *Task[R]) Stop(ctx context.Context) (R, error) {
	// The reply of the stop itself says nothing: the task may have ended by itself.
	if _, _, err := t.client.begin(opStop, t.id); err != nil {
		var none R
		return none, err
	}
	return t.Wait(ctx)
}

// call makes a request that ends by itself.
func call[R any](ctx context.Context, c *Client, op string, args any) (R, error) {
	id, messages, err := c.begin(op, args)
	if err != nil {
		var none R
		return none, err
	}
	return (&Task[R]{c, op, id, messages}).Wait(ctx)
}

// Run runs a command in the guest's shell to its end. That it fails is no error.
func (c *Client) Run(ctx context.Context, r Run) (Ran, error) { return call[Ran](ctx, c, opRun, r) }

// Shell runs a command that must succeed, and returns what it wrote.
func (c *Client) Shell(ctx context.Context, command string) (string, error) {
	ran, err := c.Run(ctx, Run{Command: command})
	if err == nil && ran.Exit != 0 {
		err = fmt.Errorf("guest: %s: exit status %d: %s", command, ran.Exit, bytes.TrimSpace([]byte(ran.Output)))
	}
	return ran.Output, err
}

// Get makes one HTTP request. That it fails is no error.
func (c *Client) Get(ctx context.Context, g Get) (Got, error) { return call[Got](ctx, c, opGet, g) }

// NAT sets up the guest's NAT.
func (c *Client) NAT(ctx context.Context, n NAT) error {
	_, err := call[NATed](ctx, c, opNAT, n)
	return err
}

// Ask begins to ask.
func (c *Client) Ask(ctx context.Context, a Ask) (*Task[Asked], error) {
	return start[Asked](ctx, c, opAsk, a)
}

// Send begins to send.
func (c *Client) Send(ctx context.Context, s Send) (*Task[Sent], error) {
	return start[Sent](ctx, c, opSend, s)
}

// Sniff begins to record.
func (c *Client) Sniff(ctx context.Context, s Sniff) (*Task[Sniffed], error) {
	return start[Sniffed](ctx, c, opSniff, s)
}

// Hold begins to open connections.
func (c *Client) Hold(ctx context.Context, h Hold) (*Task[Held], error) {
	return start[Held](ctx, c, opHold, h)
}

// HalfOpen begins to begin connections.
func (c *Client) HalfOpen(ctx context.Context, h HalfOpen) (*Task[HalfOpened], error) {
	return start[HalfOpened](ctx, c, opHalfOpen, h)
}
