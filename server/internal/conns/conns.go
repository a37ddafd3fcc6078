// Package conns bounds the connections that exist at one time, and with them the
// memory that a hostile guest can take.
package conns

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

const (
	// maxGuest bounds the guest's connections. Each holds about 25 KB in the
	// process and up to 50 KB in the kernel. An SDK that keeps a pool has a dozen.
	maxGuest = 128
	// maxPod bounds the connections from the pod itself: a few probes at a time.
	maxPod = 8
)

// Limit admits connections and knows which of them wait for a request. Its
// Track must be the ConnState hook of the http.Server that serves them.
type Limit struct {
	own    netip.Addr
	report func(remote net.Addr, detail string)

	mu    sync.Mutex
	freed sync.Cond // signalled when a connection is closed
	guest pool
	pod   pool
	ticks uint64 // counts changes, to tell which was earlier
}

// pool is the connections that share one bound.
type pool struct {
	max     int
	members map[net.Conn]*member
}

// member is the state of one connection. It is waiting until the header of a
// request has arrived, and again after each answer.
type member struct {
	waiting bool
	since   uint64
}

// NewLimit returns a Limit. Connections whose source is own, the address that
// the server listens on, are those of the pod's own probes: the guest cannot
// send from there, since the kernel delivers the answers inside the pod. They
// have a bound of their own, so that no flood of the guest fails a probe.
//
// Report is called for each connection that is closed for lack of room.
func NewLimit(own netip.Addr, report func(remote net.Addr, detail string)) *Limit {
	l := &Limit{
		own:    own,
		report: report,
		guest:  pool{max: maxGuest, members: make(map[net.Conn]*member)},
		pod:    pool{max: maxPod, members: make(map[net.Conn]*member)},
	}
	l.freed.L = &l.mu
	return l
}

// Listener returns a listener that accepts what the limit admits of TCP
// connections to inner, and closes the others.
func (l *Limit) Listener(inner net.Listener) net.Listener {
	return &listener{Listener: inner, limit: l}
}

type listener struct {
	net.Listener
	limit *Limit
}

// Accept returns the next connection that is admitted.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.limit.admit(conn) {
			return conn, nil
		}
		reset(conn)
		l.limit.report(conn.RemoteAddr(), "closed a new connection, since all others are being answered")
	}
}

// admit makes room for conn if it must, by closing the connection that has
// waited longest. If none waits, conn is not admitted.
//
// It returns only when there is room, so that the bound holds for what closed
// connections still occupy too. That takes no longer than the server needs to
// see that a connection is closed.
func (l *Limit) admit(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.poolOf(conn)
	if len(p.members) >= p.max {
		longest := p.longestWaiting()
		if longest == nil {
			return false
		}
		reset(longest)
		l.report(longest.RemoteAddr(), "closed the connection that waited longest, to make room for a new one")
		for len(p.members) >= p.max {
			l.freed.Wait()
		}
	}
	p.members[conn] = &member{waiting: true, since: l.tick()}
	return true
}

// Track follows the state of the connections; it is an http.Server's ConnState
// hook.
func (l *Limit) Track(conn net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.poolOf(conn)
	m := p.members[conn]
	if m == nil {
		return
	}
	switch state {
	case http.StateNew, http.StateIdle:
		m.waiting, m.since = true, l.tick()
	case http.StateActive:
		m.waiting = false
	case http.StateClosed, http.StateHijacked:
		delete(p.members, conn)
		l.freed.Broadcast()
	}
}

func (l *Limit) tick() uint64 {
	l.ticks++
	return l.ticks
}

func (l *Limit) poolOf(conn net.Conn) *pool {
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok && remote.AddrPort().Addr().Unmap().WithZone("") == l.own {
		return &l.pod
	}
	return &l.guest
}

func (p *pool) longestWaiting() net.Conn {
	var longest net.Conn
	var since uint64
	for conn, m := range p.members {
		if m.waiting && (longest == nil || m.since < since) {
			longest, since = conn, m.since
		}
	}
	return longest
}

// reset closes a connection at once: what was not sent is dropped, and the
// kernel keeps nothing for a peer that does not read or answer.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
