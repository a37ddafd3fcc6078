package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections bounds what connections hold, each some 100 KB. The API servers
// need a few: their requests share one.
const maxConnections = 128

// connections closes one where there would be too many: of the host with the most
// of them the one that has been idle longest, or else is oldest.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]connection
}

type connection struct {
	host   string
	active bool
	since  time.Time
}

// track is the ConnState of an http.Server.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
		return
	case http.StateNew:
		if len(c.open) >= maxConnections {
			c.makeRoom()
		}
	}
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	c.open[conn] = connection{host, state == http.StateActive, time.Now()}
}

func (c *connections) makeRoom() {
	count := map[string]int{}
	for _, one := range c.open {
		count[one.host]++
	}
	var victim net.Conn
	for conn, one := range c.open {
		if victim == nil || c.goesFirst(one, c.open[victim], count) {
			victim = conn
		}
	}
	delete(c.open, victim)
	// Not the TLS connection's own Close, which waits to say goodbye.
	victim.(*tls.Conn).NetConn().Close()
}

func (c *connections) goesFirst(a, b connection, count map[string]int) bool {
	switch {
	case count[a.host] != count[b.host]:
		return count[a.host] > count[b.host]
	case a.active != b.active:
		return b.active
	}
	return a.since.Before(b.since)
}
