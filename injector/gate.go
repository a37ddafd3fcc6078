package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

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
