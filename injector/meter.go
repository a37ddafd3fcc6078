package main

import (
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// meter bounds what has been read from all connections and has not been used: bodies that nobody reads yet, which
// net/http buffers for each stream. Where that is too much, it reads on only for those that have little of it, or one
// of whose requests has its place: all that such a connection has may be in front of what that request waits for.
type meter struct {
	mu      sync.Mutex
	all     int
	waiting []*meteredConn // in their order
}

const (
	meterMost  = 4 << 20
	meterShare = 16 << 10 // what any connection may have
)

// meteredListener accepts connections that a meter bounds.
type meteredListener struct {
	net.Listener
	meter *meter
}

func (l meteredListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &meteredConn{Conn: conn, meter: l.meter, wake: make(chan struct{}, 1)}, nil
}

type meteredConn struct {
	net.Conn
	meter *meter
	wake  chan struct{}

	placed *atomic.Int32 // requests that have a place: the connection's, before it is first read

	held   int // with closed under the meter's lock
	closed bool
}

func (c *meteredConn) Read(p []byte) (int, error) {
	for m := c.meter; ; <-c.wake {
		m.mu.Lock()
		may := m.all < meterMost || c.held < meterShare || c.placed.Load() > 0 || c.closed
		if i := slices.Index(m.waiting, c); may && i >= 0 {
			m.waiting = slices.Delete(m.waiting, i, i+1)
		} else if !may && i < 0 {
			m.waiting = append(m.waiting, c)
		}
		m.mu.Unlock()
		if may {
			n, err := c.Conn.Read(p)
			c.use(-n)
			return n, err
		}
	}
}

func (c *meteredConn) Close() error {
	c.change(func() { c.closed = true })
	return c.Conn.Close()
}

// use notes that bytes have been used; fewer than none: that they have been read.
func (c *meteredConn) use(bytes int) { c.change(func() { c.drop(min(bytes, c.held)) }) }

// useAll notes that the connection has no request any more, and so holds nothing.
func (c *meteredConn) useAll() { c.change(func() { c.drop(c.held) }) }

// lookAgain has Read look whether it may go on.
func (c *meteredConn) lookAgain() { c.change(func() { c.signal() }) }

func (c *meteredConn) change(f func()) {
	if c == nil {
		return // not of a listener that is metered
	}
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	f()
	if c.closed {
		c.drop(c.held)
		c.signal()
	}
	if c.meter.all < meterMost && len(c.meter.waiting) > 0 {
		c.meter.waiting[0].signal()
	}
}

func (c *meteredConn) drop(bytes int) {
	c.held -= bytes
	c.meter.all -= bytes
}

// signal has Read look again.
func (c *meteredConn) signal() {
	select {
	case c.wake <- struct{}{}:
	default: // it will
	}
}

// meteredBody is a request's body, of which what is read is used.
type meteredBody struct {
	io.ReadCloser
	conn *meteredConn
}

func (b meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.conn.use(n)
	return n, err
}
