// Package refusals logs what was refused, so that a guest that asks for it a
// million times writes a few lines and not a million.
package refusals

import (
	"log/slog"
	"sync"
	"time"
)

// interval is the least time between two lines of the same kind.
const interval = time.Minute

// Log writes at most one line a minute for each kind of refusal.
type Log struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	logged     time.Time
	suppressed int
}

// NewLog returns a Log that writes to log by the clock now.
func NewLog(log *slog.Logger, now func() time.Time) *Log {
	return &Log{log: log, now: now, kinds: make(map[string]*kind)}
}

// Add notes a refusal. If a line is due, it has the attributes, as slog takes
// them, and the number of the same kind that were not logged since the last one.
//
// Callers pass a fixed set of kinds, since each is remembered. They pass nothing
// that the guest wrote: that is the guest's, and may be a token.
func (l *Log) Add(name string, attributes ...any) {
	suppressed, due := l.count(name)
	if due {
		l.log.With("kind", name).With(attributes...).Warn("refused", "suppressed", suppressed)
	}
}

// count tells whether a line is due, and how many were suppressed before it.
func (l *Log) count(name string) (suppressed int, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[name]
	if k == nil {
		k = &kind{}
		l.kinds[name] = k
	}
	now := l.now()
	if now.Sub(k.logged) < interval {
		k.suppressed++
		return 0, false
	}
	suppressed = k.suppressed
	k.logged, k.suppressed = now, 0
	return suppressed, true
}
