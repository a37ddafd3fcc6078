package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
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

// gate bounds how many requests are read and reviewed at a time, and with it the memory that they hold.
// Whoever waits gets in by how short a time the requests of its host hold a place: the API server, whose
// requests take milliseconds, goes before everybody that sends slowly, and before who is not known yet.
type gate struct {
	mu      sync.Mutex
	free    int
	waiting []*waiter                // in the order of their arrival
	usual   map[string]time.Duration // how long a request of a host holds a place
}

type waiter struct {
	host  string
	enter chan bool // true: a place; false: none
}

const (
	maxWaiting  = 512 // each may hold a header, a stack and a stream's buffer
	maxHosts    = 4096
	unknownHost = 200 * time.Millisecond // for a host of which nothing is known
)

var errBusy = errors.New("too many requests at a time: try again")

func newGate(places int) *gate { return &gate{free: places, usual: map[string]time.Duration{}} }

// enter waits for a place, which leave gives back. errBusy: too many wait, most of them from this host.
func (g *gate) enter(ctx context.Context, host string) (leave func(), err error) {
	w := &waiter{host: host, enter: make(chan bool, 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	if g.free > 0 {
		g.free--
		g.next()
	} else if len(g.waiting) > maxWaiting {
		g.turnAway()
	}
	g.mu.Unlock()

	select {
	case entered := <-w.enter:
		if !entered {
			return nil, errBusy
		}
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		if i := slices.Index(g.waiting, w); i >= 0 {
			g.waiting = slices.Delete(g.waiting, i, i+1)
		} else if <-w.enter {
			g.next()
		}
		return nil, ctx.Err()
	}
	begin := time.Now()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		held := time.Since(begin)
		usual, known := g.usual[host]
		if !known {
			usual = held
			for other := range g.usual {
				if len(g.usual) < maxHosts {
					break
				}
				delete(g.usual, other)
			}
		}
		g.usual[host] = (3*usual + held) / 4
		g.next()
	}, nil
}

func (g *gate) usualOf(host string) time.Duration {
	if usual, known := g.usual[host]; known {
		return usual
	}
	return unknownHost
}

// next gives a place that is free to who waits.
func (g *gate) next() {
	best := 0
	for i, w := range g.waiting {
		if g.usualOf(w.host) < g.usualOf(g.waiting[best].host) {
			best = i
		}
	}
	g.answer(best, true)
}

// turnAway refuses the newest of the host with the most that wait.
func (g *gate) turnAway() {
	count, last := map[string]int{}, 0
	for i, w := range g.waiting {
		if count[w.host]++; count[w.host] >= count[g.waiting[last].host] {
			last = i
		}
	}
	g.answer(last, false)
}

func (g *gate) answer(i int, enter bool) {
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	g.waiting[i].enter <- enter
	g.waiting = slices.Delete(g.waiting, i, i+1)
}

// Whoever reaches the webhook can make it write to the node's disk. A thousand VMs that start stay below.
const (
	maxLines   = 2000
	linePeriod = 10 * time.Second
)

// limitedLines leaves out what is beyond maxLines in linePeriod, and says how much. slog writes line by line.
type limitedLines struct {
	io.Writer
	since time.Time
	lines int
}

func (l *limitedLines) Write(line []byte) (int, error) {
	if now := time.Now(); now.Sub(l.since) >= linePeriod {
		if left := l.lines - maxLines; left > 0 {
			slog.New(slog.NewTextHandler(l.Writer, nil)).Warn("lines left out of the log", "lines", left, "period", linePeriod)
		}
		l.since, l.lines = now, 0
	}
	if l.lines++; l.lines > maxLines {
		return len(line), nil
	}
	return l.Writer.Write(line)
}
