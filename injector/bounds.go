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

// connections bounds how many there are. Half of the room is for hosts that had a review: where the others have
// more than half, one of theirs goes, or else one of the known. It is of the host with the most, the one whose last
// review is longest ago, or the oldest; one that is in use goes last. Where many that had to go have not ended yet,
// as under a flood, the next one waits to be accepted: what they hold is memory, too.
type connections struct {
	most  int
	mu    sync.Mutex
	open  map[net.Conn]*connection
	going map[net.Conn]*connection // had to go, and have not ended with their requests
	gone  sync.Cond                // one of these has
}

type connection struct {
	of       *connections
	conn     net.Conn
	metered  *meteredConn // what it is made of; nil: it is not metered
	host     string
	since    time.Time
	parts    int          // itself and its requests: what has not ended
	placed   atomic.Int32 // requests that have a place now
	reviewed atomic.Int64 // when a valid review was answered last, in Unix nanoseconds
}

// connectionKey is that of a connection in the context of its requests.
type connectionKey struct{}

// boundConnections has at most so many of the server's connections open.
func boundConnections(server *http.Server, most int) {
	c := &connections{most: most, open: map[net.Conn]*connection{}, going: map[net.Conn]*connection{}}
	c.gone.L = &c.mu
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.going) >= c.most/4 {
			c.gone.Wait()
		}
		if len(c.open) >= c.most {
			c.makeRoom()
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		opened := &connection{of: c, conn: conn, host: host, since: time.Now(), parts: 1}
		if secure, isTLS := conn.(*tls.Conn); isTLS {
			if metered, isMetered := secure.NetConn().(*meteredConn); isMetered {
				opened.metered, metered.placed = metered, &opened.placed
			}
		}
		for _, other := range c.open { // who is known stays so with the next connection
			if other.host == host {
				opened.reviewed.Store(max(opened.reviewed.Load(), other.reviewed.Load()))
			}
		}
		c.open[conn] = opened
		return context.WithValue(ctx, connectionKey{}, opened)
	}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			c.mu.Lock()
			one := cmp.Or(c.open[conn], c.going[conn])
			delete(c.open, conn)
			c.mu.Unlock()
			one.add(-1)
		}
	}
}

// add adds a request, or notes that a part has ended.
func (c *connection) add(parts int) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if c.parts += parts; c.parts == 1 {
		c.metered.useAll()
	} else if c.parts == 0 {
		delete(c.of.going, c.conn)
		c.of.gone.Signal()
	}
}

// place notes that a request has a place, or with -1 that it has none any more.
func (c *connection) place(requests int32) {
	c.placed.Add(requests)
	c.metered.lookAgain()
}

func (c *connections) makeRoom() {
	count, strangers := map[string]int{}, 0
	for _, one := range c.open {
		count[one.host]++
		if one.reviewed.Load() == 0 {
			strangers++
		}
	}
	goes := func(one *connection) int { // 0: before those of the other half, and these before what is in use
		switch known := one.reviewed.Load() != 0; {
		case known && one.placed.Load() > 0:
			return 2
		case known == (strangers > c.most/2):
			return 1
		}
		return 0
	}
	victim := slices.MinFunc(slices.Collect(maps.Keys(c.open)), func(a, b net.Conn) int {
		one, other := c.open[a], c.open[b]
		age := one.since.Compare(other.since)
		if count[one.host] > c.most/2 {
			age = -age // a client that opens one for each of many requests soon needs few of them
		}
		return cmp.Or(goes(one)-goes(other), count[other.host]-count[one.host],
			cmp.Compare(one.reviewed.Load(), other.reviewed.Load()), age)
	})
	c.going[victim] = c.open[victim]
	delete(c.open, victim)
	if secure, isTLS := victim.(*tls.Conn); isTLS {
		victim = secure.NetConn() // its own Close waits to say goodbye
	}
	victim.Close()
}

// gate bounds how many requests are read and reviewed at a time, and with it the memory that they hold.
// Whoever waits gets in by how short a time the requests of its host hold a place: the API server, whose
// requests take milliseconds, goes before everybody that sends slowly, and before who is not known yet. And
// whose client sends, or takes its answer, slowly loses its place to those that wait.
type gate struct {
	mu      sync.Mutex
	free    int
	most    int64                    // what all that wait may hold, in bytes
	waiting []*place                 // in the order of their arrival
	held    map[string]int64         // what those of each host that wait hold
	all     int64                    // the sum of that
	inside  []*place                 // the oldest first
	usual   map[string]time.Duration // how long a request of a host holds a place
}

// place is what a request waits for, and then holds.
type place struct {
	on        *connection
	holds     int64     // bytes, while it waits
	enter     chan bool // true: it is given; false: it is not
	since     time.Time
	reviewed  atomic.Bool // now: its client is not waited for
	interrupt func()      // ends the reading or writing; nil: it is ended
}

const (
	waiterHolds = 8 << 10 // besides what its stream has buffered of the body: a header, stacks
	maxHosts    = 4096
	unknownHost = 200 * time.Millisecond // for a host of which nothing is known
	patience    = 200 * time.Millisecond // with a client, where others wait
)

var errBusy = errors.New("too many requests at a time: try again")

func newGate(places int, most int64) *gate {
	return &gate{free: places, most: most, usual: map[string]time.Duration{}, held: map[string]int64{}}
}

// enter waits for a place with a body of so many bytes, and leave gives it back; interrupt ends whatever waits for
// the client. errBusy: too many wait, most of them from this host.
func (g *gate) enter(ctx context.Context, on *connection, body int64, interrupt func()) (*place, error) {
	p := &place{on: on, holds: waiterHolds + min(max(body, 0), maxReceiveBuffer), enter: make(chan bool, 1), interrupt: interrupt}
	g.mu.Lock()
	g.waiting = append(g.waiting, p)
	g.hold(p, p.holds)
	if g.free > 0 {
		g.free--
		g.next()
	} else if g.all > g.most {
		g.turnAway(p)
	}
	g.mu.Unlock()
	impatient := time.NewTicker(patience / 2)
	defer impatient.Stop()
	for {
		select {
		case entered := <-p.enter:
			if !entered {
				return nil, errBusy
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			p.since = time.Now()
			g.inside = append(g.inside, p)
			return p, nil
		case <-impatient.C:
			g.interrupt()
		case <-ctx.Done():
			g.mu.Lock()
			defer g.mu.Unlock()
			if slices.Contains(g.waiting, p) {
				g.answer(p, false)
			} else if <-p.enter {
				g.next()
			}
			return nil, ctx.Err()
		}
	}
}

// leave gives a place back.
func (g *gate) leave(p *place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.inside, p)
	g.inside = slices.Delete(g.inside, i, i+1)
	held := time.Since(p.since)
	usual, known := g.usual[p.on.host]
	if !known {
		usual = held
		for other := range g.usual {
			if len(g.usual) < maxHosts {
				break
			}
			delete(g.usual, other)
		}
	}
	g.usual[p.on.host] = (3*usual + held) / 4
	g.next()
}

// interrupt has as many lose their place as wait for one, if their clients have been waited for long enough.
func (g *gate) interrupt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := len(g.waiting)
	for _, p := range g.inside {
		if left > 0 && p.interrupt != nil && !p.reviewed.Load() && time.Since(p.since) > patience {
			p.interrupt()
			p.interrupt = nil
			left--
		}
	}
}

func (g *gate) usualOf(p *place) time.Duration {
	if usual, known := g.usual[p.on.host]; known {
		return usual
	}
	return unknownHost
}

// next gives a place that is free to who waits.
func (g *gate) next() {
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	g.answer(slices.MinFunc(g.waiting, func(a, b *place) int { return cmp.Compare(g.usualOf(a), g.usualOf(b)) }), true)
}

// turnAway refuses the newest of the host that holds the most. It is fast for who floods: meanwhile what more
// arrives is held, too.
func (g *gate) turnAway(newcomer *place) {
	host, most := newcomer.on.host, g.held[newcomer.on.host]
	if most*int64(len(g.held)) < g.all { // less than others on average
		for other, held := range g.held {
			if held > most {
				host, most = other, held
			}
		}
	}
	for _, p := range slices.Backward(g.waiting) {
		if p.on.host == host {
			g.answer(p, false)
			return
		}
	}
}

func (g *gate) answer(p *place, enter bool) {
	i := slices.Index(g.waiting, p)
	g.waiting = slices.Delete(g.waiting, i, i+1)
	g.hold(p, -p.holds)
	p.enter <- enter
}

func (g *gate) hold(p *place, bytes int64) {
	g.all += bytes
	if g.held[p.on.host] += bytes; g.held[p.on.host] == 0 {
		delete(g.held, p.on.host)
	}
}

// Whoever reaches the webhook can make it write to the node's disk. A thousand VMs that start stay below the first,
// and what strangers have it write has a bound of its own.
const (
	maxLines         = 2000
	maxLinesOfOthers = 200
	linePeriod       = 10 * time.Second
)

// limitedLines leaves out what is beyond so many lines in linePeriod, and says how much. slog writes line by line.
type limitedLines struct {
	io.Writer
	most  int
	since time.Time
	lines int
}

func (l *limitedLines) Write(line []byte) (int, error) {
	if now := time.Now(); now.Sub(l.since) >= linePeriod {
		if left := l.lines - l.most; left > 0 {
			slog.New(slog.NewTextHandler(l.Writer, nil)).Warn("lines left out of the log", "lines", left, "period", linePeriod)
		}
		l.since, l.lines = now, 0
	}
	if l.lines++; l.lines > l.most {
		return len(line), nil
	}
	return l.Writer.Write(line)
}
