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

// connections bounds how many there are, and with it what they hold, and closes one
// where there would be too many: of the host with the most of them the oldest that
// has had no valid review answered, or else the oldest.
type connections struct {
	most int
	mu   sync.Mutex
	open map[net.Conn]*connection
}

type connection struct {
	host   string
	since  time.Time
	proven *atomic.Bool // it has had a valid review answered
}

// provenKey is that of a connection's proven in the context of its requests.
type provenKey struct{}

// guard has the server's connections bounded.
func (c *connections) guard(server *http.Server) {
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.open) >= c.most {
			c.makeRoom()
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		opened := &connection{host, time.Now(), new(atomic.Bool)}
		c.open[conn] = opened
		return context.WithValue(ctx, provenKey{}, opened.proven)
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
	count := map[string]int{}
	for _, one := range c.open {
		count[one.host]++
	}
	victim := slices.MinFunc(slices.Collect(maps.Keys(c.open)), func(a, b net.Conn) int {
		one, other := c.open[a], c.open[b]
		return cmp.Or(count[other.host]-count[one.host], one.worth()-other.worth(), one.since.Compare(other.since))
	})
	delete(c.open, victim)
	if secure, isTLS := victim.(*tls.Conn); isTLS {
		victim = secure.NetConn() // its own Close waits to say goodbye
	}
	victim.Close()
}

func (c *connection) worth() int {
	if c.proven.Load() {
		return 1
	}
	return 0
}
