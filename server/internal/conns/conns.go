// Package conns bounds the connections that exist at one time, and with them the
// memory that a hostile guest can take.
package conns

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

const (
	// maxGuest bounds the guest's connections: about 25 KB of this process each, so
	// 3 MB in all. A program that keeps a pool of them has a dozen, and as many
	// programs as this may ask at the same instant.
	maxGuest = 128
	// maxPod bounds the connections from the pod itself: a few probes at a time.
	maxPod = 8
	// maxClosing bounds, for each of the two, the connections that were closed to
	// make room and that the server did not yet let go of.
	maxClosing = 32
)

// Limit admits connections, and knows which of them wait for a request. Its Track
// must be the ConnState hook of the http.Server that serves them.
type Limit struct {
	probes netip.Addr
	report func(remote net.Addr, detail string)

	mu    sync.Mutex
	guest *pool
	pod   *pool
}

// NewLimit returns a Limit. Connections whose source is probes are those of the
// pod's own probes: an address from which the guest cannot connect, by a bridge
// since the kernel delivers the answers inside the pod, and by passt since that
// asks from the address it asks. They have a bound of their own, so that no flood
// of the guest fails a probe.
//
// Report is called for each connection that is closed for lack of room.
func NewLimit(probes netip.Addr, report func(remote net.Addr, detail string)) *Limit {
	return &Limit{probes: probes, report: report, guest: newPool(maxGuest), pod: newPool(maxPod)}
}

// Listener returns a listener that accepts the connections to inner, which is of TCP,
// that the limit admits, and closes the others.
func (l *Limit) Listener(inner net.Listener) net.Listener {
	return &listener{Listener: inner, limit: l}
}

type listener struct {
	net.Listener
	limit *Limit
}

// conn is a connection that a pool knows. It holds its place there, so that a request
// need not look for it.
type conn struct {
	*net.TCPConn // all of it: net/http asks for more than a net.Conn has
	pool         *pool
	place        *list.Element // among the members; nil: it is none any more
	waits        bool          // for a request, the first or the next one
}

// Accept returns the next connection that is admitted.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		newcomer := &conn{TCPConn: accepted.(*net.TCPConn), pool: l.limit.poolOf(accepted)}
		switch surplus := l.limit.admit(newcomer); surplus {
		case nil:
			return newcomer, nil
		case newcomer:
			surplus.reset()
			l.limit.report(surplus.RemoteAddr(), "closed a new connection, since the others are being answered")
		default:
			surplus.reset()
			l.limit.report(surplus.RemoteAddr(), "closed the connection that waited longest, to make room for a new one")
			return newcomer, nil
		}
	}
}

// admit counts a connection in, and returns the connection to close for lack of room:
// none, the one that has waited longest, or the new one itself, which does not count
// then. It never waits, since the next in line may be a probe.
func (l *Limit) admit(newcomer *conn) (surplus *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if newcomer.pool.isFull() {
		surplus = newcomer.pool.evict()
		if surplus == nil {
			return newcomer
		}
	}
	newcomer.pool.add(newcomer)
	return surplus
}

// Track follows the states of the connections; it is an http.Server's ConnState
// hook. Connections that did not come by its listener are none of its concern.
func (l *Limit) Track(tracked net.Conn, state http.ConnState) {
	c, admitted := tracked.(*conn)
	if !admitted {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch state {
	case http.StateIdle:
		c.pool.wait(c)
	case http.StateActive:
		c.waits = false
	case http.StateClosed:
		c.pool.remove(c)
	}
}

func (l *Limit) poolOf(conn net.Conn) *pool {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if ok && remote.AddrPort().Addr().Unmap().WithZone("") == l.probes {
		return l.pod
	}
	return l.guest
}

// reset closes a connection at once: what was not sent is dropped, and the
// kernel keeps nothing for a peer that does not read or answer.
func (c *conn) reset() {
	c.SetLinger(0)
	c.Close()
}
