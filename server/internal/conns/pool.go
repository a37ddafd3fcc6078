package conns

import (
	"container/list"
	"net"
)

// pool is the connections that share one bound.
type pool struct {
	max int
	// members are the connections that count. Those that wait for a request, the
	// first or the next one, have a place in waiting, the others nil.
	members map[net.Conn]*list.Element
	waiting *list.List // of net.Conn, the one that has waited longest first
	// closing are those that were evicted, until the server is done with them.
	closing map[net.Conn]bool
}

func newPool(max int) *pool {
	return &pool{
		max:     max,
		members: make(map[net.Conn]*list.Element),
		waiting: list.New(),
		closing: make(map[net.Conn]bool),
	}
}

// wait makes conn the member that has waited least.
func (p *pool) wait(conn net.Conn) {
	p.stopWaiting(conn)
	p.members[conn] = p.waiting.PushBack(conn)
}

func (p *pool) stopWaiting(conn net.Conn) {
	if place := p.members[conn]; place != nil {
		p.waiting.Remove(place)
		p.members[conn] = nil
	}
}

// evict removes the member that has waited longest, for the caller to close. It
// returns nil if none waits, or if too many of before are not closed yet.
func (p *pool) evict() net.Conn {
	longest := p.waiting.Front()
	if longest == nil || len(p.closing) >= maxClosing {
		return nil
	}
	conn := p.waiting.Remove(longest).(net.Conn)
	delete(p.members, conn)
	p.closing[conn] = true
	return conn
}
