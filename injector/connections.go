package main

import (
	"cmp"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
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
	active int // 1: it has a request
	since  time.Time
}

// track is the ConnState of an http.Server.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	now := connection{host: host, since: time.Now()}
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
		return
	case http.StateActive:
		now.active = 1
	case http.StateNew:
		if len(c.open) >= maxConnections {
			c.makeRoom()
		}
	}
	c.open[conn] = now
}

func (c *connections) makeRoom() {
	count := map[string]int{}
	for _, one := range c.open {
		count[one.host]++
	}
	victim := slices.MinFunc(slices.Collect(maps.Keys(c.open)), func(a, b net.Conn) int {
		one, other := c.open[a], c.open[b]
		return cmp.Or(count[other.host]-count[one.host], one.active-other.active, one.since.Compare(other.since))
	})
	delete(c.open, victim)
	// Not the TLS connection's own Close, which waits to say goodbye.
	victim.(*tls.Conn).NetConn().Close()
}
