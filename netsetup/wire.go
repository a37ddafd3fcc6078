package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/example/kubevirt-imds/netsetup/internal/events"
)

// A failed attempt rests when no event comes before, twice as long each time. A
// failure whose end the kernel does not announce, such as a lack of memory or a module
// that is loaded later, heals by it; everything else by its event.
const (
	shortestRest = time.Second
	longestRest  = 5 * time.Second
	// What the kernel lacks is seldom loaded later, and each attempt has it look.
	longestRestOfProbes = time.Minute
)

// keepWired brings the pod's network to the wiring that it should have, again
// after each change, until the context ends. It does not end by itself: in a
// pod that cannot be served, a container that fails would hold back the VM.
// The network is that of the namespace of the thread which calls it, which must be
// locked to the goroutine unless all threads share it.
func keepWired(ctx context.Context, to target, log *slog.Logger) {
	report := reporter{log: log, now: time.Now}
	keep(ctx, to, report.tell, func(context.Context) {})
	log.Info("stopped; the wiring stays")
}

// keep is keepWired for a caller that hears what came of each reconcile, and may hold
// back the next one. tell says whether it wants to hear of the same again later.
func keep(ctx context.Context, to target, tell func(outcome) (owed bool), hold func(context.Context)) {
	reconciler := reconciler{target: to}
	var changes <-chan struct{}
	for rest := shortestRest; ctx.Err() == nil; {
		result := outcome{err: reconciler.probe()}
		if result.err == nil && changes == nil {
			changes, result.err = events.Watch(ctx)
		}
		if result.err == nil {
			result = reconciler.reconcile()
		}
		// What came meanwhile may be the end of the failure, as when a link goes that
		// was being changed: that is not worth a line.
		for again := 0; (result.err != nil || result.lesser != nil) && again < 3 && drained(changes); again++ {
			changed := result.changed
			result = reconciler.reconcile()
			result.changed = result.changed || changed
		}
		owed := tell(result)
		var retry <-chan time.Time
		if result.err == nil && result.lesser == nil {
			rest = shortestRest
		} else {
			retry = time.After(rest)
			longest := longestRest
			if !reconciler.probed {
				longest = longestRestOfProbes
			}
			rest = min(2*rest, longest)
		}
		if retry == nil && owed {
			// The last line may be of a state that has passed.
			retry = time.After(lineEvery)
		}
		events := changes
		if result.err != nil && !reconciler.probed {
			// No event brings what the kernel lacks, and each attempt has it look
			// for modules.
			events = nil
		}
		select {
		case <-ctx.Done():
		case <-events:
		case <-retry:
		}
		hold(ctx)
	}
}

// drained says whether there was an event, and takes it.
func drained(changes <-chan struct{}) bool {
	select {
	case <-changes:
		return true
	default:
		return false
	}
}

// wireOnce brings the pod's network to its wiring and fails where there is no
// guest to join the endpoint to.
func wireOnce(to target, log *slog.Logger) error {
	reconciler := reconciler{target: to}
	result := reconciler.reconcile()
	if result.err != nil {
		return result.err
	}
	if !served(result.wiring) {
		return fmt.Errorf("nobody to serve: missing %s; run without --once to wait for it", result.wiring.Waiting)
	}
	report := reporter{log: log, now: time.Now}
	report.tell(result)
	return nil
}
