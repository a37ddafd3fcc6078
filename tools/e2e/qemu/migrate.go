package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Migration is how a guest went from one QEMU to another.
type Migration struct {
	// Stopped is when the source's processor stood still, and Resumed when the target's began to run, by this
	// machine's clock.
	Stopped, Resumed time.Time
}

// Downtime is how long no processor ran.
func (m Migration) Downtime() time.Duration { return m.Resumed.Sub(m.Stopped) }

// Incoming starts a QEMU that waits for a guest to come by migration. The guest must be of the same options but for
// the namespace and the taps.
func Incoming(ctx context.Context, options Options) (*Guest, error) {
	g, err := launch(ctx, options, "-incoming", "defer")
	if err != nil {
		return nil, fmt.Errorf("waiting for a guest: %w", err)
	}
	return g, nil
}

// MigrateTo moves the guest, with all that it is at, to a QEMU that waits for it, and ends this one. The hand goes with
// the guest.
//
// The guest stands still while its memory is copied, for some 0.6 s. QEMU can copy it while it runs, but one emulated
// guest of some fifty on a busy machine had broken memory afterwards; why was not found out.
func (g *Guest) MigrateTo(ctx context.Context, target *Guest) (Migration, error) {
	m, err := g.migrate(ctx, target)
	if err != nil {
		return m, fmt.Errorf("migrating a guest: %w", err)
	}
	target.Hand, g.Hand = g.Hand, nil
	target.Hand.Move(target.port)
	return m, g.Close()
}

func (g *Guest) migrate(ctx context.Context, target *Guest) (Migration, error) {
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	for _, side := range []*Guest{g, target} {
		if _, err := side.monitor.execute(ctx, "migrate-set-capabilities", events); err != nil {
			return Migration{}, err
		}
	}
	address := map[string]any{"uri": "unix:" + filepath.Join(target.folder, "migration")}
	sent, arrived := g.monitor.position(), target.monitor.position()
	if _, err := target.monitor.execute(ctx, "migrate-incoming", address); err != nil {
		return Migration{}, err
	}
	if _, err := g.monitor.execute(ctx, "stop", nil); err != nil {
		return Migration{}, err
	}
	if _, err := g.monitor.execute(ctx, "migrate", address); err != nil {
		return Migration{}, err
	}
	if err := g.monitor.awaitMigrated(ctx, sent); err != nil {
		return Migration{}, err
	}
	if err := target.monitor.awaitMigrated(ctx, arrived); err != nil {
		return Migration{}, fmt.Errorf("the target: %w", err)
	}
	if _, err := target.monitor.execute(ctx, "cont", nil); err != nil {
		return Migration{}, err
	}
	stopped, err := g.monitor.await(ctx, sent, func(e Event) bool { return e.Name == "STOP" })
	if err != nil {
		return Migration{}, err
	}
	resumed, err := target.monitor.await(ctx, arrived, func(e Event) bool { return e.Name == "RESUME" })
	return Migration{Stopped: stopped.At, Resumed: resumed.At}, err
}

// awaitMigrated returns when all of the guest has left, or arrived.
func (m *monitor) awaitMigrated(ctx context.Context, position int) error {
	var status string
	_, err := m.await(ctx, position, func(e Event) bool {
		var data struct{ Status string }
		if e.Name == "MIGRATION" && json.Unmarshal(e.Data, &data) == nil {
			status = data.Status
		}
		return status == "completed" || status == "failed" || status == "cancelled"
	})
	if err == nil && status != "completed" {
		err = errors.New(status)
	}
	return err
}
