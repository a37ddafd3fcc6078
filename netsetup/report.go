package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// reporter logs one line for each state of the wiring and for each repair, not
// one for each event, and of each kind no more than a reader wants: whoever changes
// the network all day does not fill the node's disk.
type reporter struct {
	log  *slog.Logger
	now  func() time.Time
	last string // the state that was told last
	owed bool   // a state was not told: there was no allowance for its line
	// lesser is what was told last of what only some guests miss.
	lesser  string
	lacking map[string]bool // the pieces that were told to be missing
	kinds   map[string]*allowance
}

// allowance is how often something may happen: most times at once, and once more
// every so often.
type allowance struct {
	most    int
	every   time.Duration
	left    int
	since   time.Time // when the last was added
	refused int       // since the last that was allowed
}

func newAllowance(most int, every time.Duration, now time.Time) *allowance {
	return &allowance{most: most, every: every, left: most, since: now}
}

// take says whether it may happen now, and counts it.
func (a *allowance) take(now time.Time) bool {
	earned := int(now.Sub(a.since) / a.every)
	a.left, a.since = min(a.left+earned, a.most), a.since.Add(time.Duration(earned)*a.every)
	if a.left == 0 {
		a.refused++
		return false
	}
	a.left--
	return true
}

// Of each kind of line.
const (
	linesAtOnce = 20
	lineEvery   = time.Minute
)

// tell logs what came of a reconcile, where it is news, and says whether there was no
// allowance for it.
func (r *reporter) tell(o outcome) (owed bool) {
	state := fmt.Sprint(o.err, o.wiring.Waiting, wired(o))
	took := o.took.Round(time.Microsecond)
	entered := state != r.last || r.owed
	r.last, r.owed = state, false
	switch {
	case o.err != nil:
		if entered {
			r.write(slog.LevelError, "not served", "reason", o.err)
		}
	case !served(o.wiring):
		if entered {
			r.write(slog.LevelInfo, "endpoint ready, nobody to serve yet", "missing", o.wiring.Waiting)
		}
	case entered:
		r.write(slog.LevelInfo, "wired", append(wired(o), "took", took)...)
	case o.changed:
		r.write(slog.LevelInfo, "repaired", append(wired(o), "took", took)...)
	}
	lesser := ""
	if o.lesser != nil {
		lesser = o.lesser.Error()
	}
	if o.err == nil && lesser != r.lesser {
		r.lesser = lesser
		if lesser != "" {
			r.write(slog.LevelWarn, "served in part", "reason", lesser)
		}
	}
	for _, err := range o.missing {
		if !r.lacking[err.Error()] {
			r.write(slog.LevelWarn, "served in part", "reason", err)
			if r.lacking == nil {
				r.lacking = map[string]bool{}
			}
			r.lacking[err.Error()] = true
		}
	}
	return r.owed
}

// write writes a line, if there is an allowance for one of its kind. The next that is
// written says how many were not.
func (r *reporter) write(level slog.Level, message string, attributes ...any) {
	now := r.now()
	if r.kinds == nil {
		r.kinds = map[string]*allowance{}
	}
	a := r.kinds[message]
	if a == nil {
		a = newAllowance(linesAtOnce, lineEvery, now)
		r.kinds[message] = a
	}
	if !a.take(now) {
		r.owed = true
		return
	}
	if a.refused > 0 {
		attributes = append(attributes, "more", a.refused)
		a.refused = 0
	}
	r.log.Log(context.Background(), level, message, attributes...)
}

// tellOf logs a failure that is nobody's end.
func (r *reporter) tellOf(message string, err error) {
	r.write(slog.LevelError, message, "reason", err)
}

// served says whether the guest has a way to the endpoint.
func served(w wiring.Wiring) bool { return w.Joined() || w.Redirected() }

// wired is the wiring as attributes of a log line.
func wired(o outcome) []any {
	if o.wiring.Redirected() {
		return []any{"binding", "passt", "port", o.wiring.RedirectPort}
	}
	attributes := []any{
		"bridge", o.wiring.Bridge.Name,
		"guests", strings.Join(wiring.Names(o.wiring.Guests), ","),
		"uplinks", strings.Join(o.wiring.Uplinks, ","),
		"mtu", o.wiring.MTU,
		"ipv6", o.ipv6,
	}
	if len(o.led) > 0 {
		attributes = append(attributes, "led", strings.Join(o.led, ","))
	}
	return attributes
}
