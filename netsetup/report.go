package main

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// reporter logs one line for each state of the wiring and for each repair, not
// one for each event.
type reporter struct {
	log  *slog.Logger
	last string // the state that was told last
}

// tell logs what came of a reconcile, where it is news.
func (r *reporter) tell(o outcome) {
	state := fmt.Sprint(o.wiring, o.err)
	entered := state != r.last
	r.last = state
	switch {
	case o.err != nil:
		if entered {
			r.log.Error("not served", "reason", o.err)
		}
	case !served(o.wiring):
		if entered {
			r.log.Info("endpoint ready, nobody to serve yet", "missing", o.wiring.Waiting)
		}
	case entered:
		r.log.Info("wired", wired(o)...)
	case o.changed:
		r.log.Info("repaired", wired(o)...)
	}
}

// served says whether the guest has a way to the endpoint.
func served(w wiring.Wiring) bool { return w.Joined() || w.Redirected() }

// wired is the wiring as attributes of a log line, with the proof that the
// address answers.
func wired(o outcome) []any {
	if o.wiring.Redirected() {
		return []any{
			"binding", "passt",
			"port", o.wiring.RedirectPort,
			"took", o.took.Round(time.Microsecond),
			"server", probe(),
		}
	}
	return []any{
		"bridge", o.wiring.Bridge.Name,
		"guests", strings.Join(o.wiring.Guests, ","),
		"uplinks", strings.Join(o.wiring.Uplinks, ","),
		"mtu", o.wiring.MTU,
		"ipv6", o.wiring.IPv6,
		"took", o.took.Round(time.Microsecond),
		"server", probe(),
	}
}
