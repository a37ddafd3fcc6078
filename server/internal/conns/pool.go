package conns

import "container/list"

// pool is the connections that share one bound.
type pool struct {
	max int
	// members are the connections that count. Those that wait for a request, the
	// first or the next one, are in the order in which they began to.
	members *list.List // of *conn
	// closing are those that were evicted, until the server is done with them.
	closing map[*conn]bool
}

func newPool(max int) *pool {
	return &pool{max: max, members: list.New(), closing: make(map[*conn]bool)}
}

func (p *pool) isFull() bool { return p.members.Len() >= p.max }

func (p *pool) add(c *conn) { c.place, c.waits = p.members.PushBack(c), true }

// wait makes a member the one that has waited least.
func (p *pool) wait(c *conn) {
	if c.place != nil {
		p.members.MoveToBack(c.place)
		c.waits = true
	}
}

// evict removes the member that has waited longest, for the caller to close. It
// returns nil if none waits, or if too many of before are not closed yet.
func (p *pool) evict() *conn {
	if len(p.closing) >= maxClosing {
		return nil
	}
	for place := p.members.Front(); place != nil; place = place.Next() {
		if c := place.Value.(*conn); c.waits {
			p.remove(c)
			p.closing[c] = true
			return c
		}
	}
	return nil
}

// remove takes out a connection that is closed, or is to be.
func (p *pool) remove(c *conn) {
	delete(p.closing, c)
	if c.place != nil {
		p.members.Remove(c.place)
		c.place = nil
	}
}
