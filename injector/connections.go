package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// connections bounds how many there are: one too many closes one of the host with the most. Half of the room
// is for those that had a review: where the others have more than half, their oldest goes, or else the one
// whose last review is longest ago.
type connections struct {
	most int
	mu   sync.Mutex
	open map[net.Conn]*connection
}

type connection struct {
	host     string
	since    time.Time
	reviewed atomic.Int64 // when a valid review was answered last, in Unix nanoseconds
}

// connectionKey is that of a connection in the context of its requests.
type connectionKey struct{}

// guard has the server's connections bounded.
func (c *connections) guard(server *http.Server) {
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.open) >= c.most {
			c.makeRoom()
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		opened := &connection{host: host, since: time.Now()}
		c.open[conn] = opened
		return context.WithValue(ctx, connectionKey{}, opened)
	}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.open, conn)
		}
	}
}

func (c *connections) makeRoom() {
	count, strangers := map[string]int{}, 0
	for _, one := range c.open {
		count[one.host]++
		if one.reviewed.Load() == 0 {
			strangers++
		}
	}
	goes := func(one *connection) int { // 0: before those of the other half
		if (one.reviewed.Load() == 0) == (strangers > c.most/2) {
			return 0
		}
		return 1
	}
	victim := slices.MinFunc(slices.Collect(maps.Keys(c.open)), func(a, b net.Conn) int {
		one, other := c.open[a], c.open[b]
		return cmp.Or(count[other.host]-count[one.host], goes(one)-goes(other),
			cmp.Compare(one.reviewed.Load(), other.reviewed.Load()), one.since.Compare(other.since))
	})
	delete(c.open, victim)
	if secure, isTLS := victim.(*tls.Conn); isTLS {
		victim = secure.NetConn() // its own Close waits to say goodbye
	}
	victim.Close()
}
