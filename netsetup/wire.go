package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/events"
	"github.com/example/kubevirt-imds/netsetup/internal/rules"
)

// retryAfter is how long a failed attempt rests when no event comes before. A
// failure whose end the kernel does not announce, such as a lack of memory or
// a module that is loaded later, heals by it; everything else by its event.
const retryAfter = time.Second

// keepWired brings the pod's network to the wiring that it should have, again
// after each change, until the context ends. It does not end by itself: in a
// pod that cannot be served, a container that fails would hold back the VM.
func keepWired(ctx context.Context, to target, log *slog.Logger) {
	report := reporter{log: log}
	reconciler := reconciler{target: to}
	changes := watch(ctx, &report)
	for ctx.Err() == nil {
		result := reconciler.reconcile()
		report.tell(result)
		var retry <-chan time.Time
		if result.err != nil {
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
		case <-changes:
		case <-retry:
		}
	}
	log.Info("stopped; the wiring stays")
}

// watch subscribes to the changes of the network, again until it succeeds or
// the context ends.
func watch(ctx context.Context, report *reporter) <-chan struct{} {
	for {
		changes, err := events.Watch(ctx)
		if err == nil {
			return changes
		}
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			err = fmt.Errorf("%w: %w", rules.ErrUnsupported, err)
		}
		report.tell(outcome{err: err})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
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
	report := reporter{log: log}
	report.tell(result)
	return nil
}
