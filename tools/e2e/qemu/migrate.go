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
	// Resumed is when the target's processor began to run, by this machine's clock.
	Resumed time.Time
	// Downtime is how long no processor ran, and Total how long all of it took, as the source's QEMU says.
	Downtime, Total time.Duration
}

// Incoming starts a QEMU that waits for a guest to come by migration. The guest must be of the same options but for
// the namespace and the taps.
func Incoming(ctx context.Context, options Options) (*Guest, error) {
	g, err := launch(ctx, options, "-incoming", "defer")
	if err != nil {
		return nil, fmt.Errorf("waiting for a guest: %w", err)
	}
	return g, nil
}

// MigrateTo moves the running guest to a QEMU that waits for it, and ends this one. The hand goes with the guest,
// and with it what it is at. When it fails the guest still runs here.
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
	if _, err := g.monitor.execute(ctx, "migrate", address); err != nil {
		return Migration{}, err
	}
	var status string
	_, err := g.monitor.await(ctx, sent, func(e Event) bool {
		var data struct{ Status string }
		if e.Name == "MIGRATION" && json.Unmarshal(e.Data, &data) == nil {
			status = data.Status
		}
		return status == "completed" || status == "failed" || status == "cancelled"
	})
	if err != nil {
		return Migration{}, err
	}
	info, err := g.monitor.execute(ctx, "query-migrate", nil)
	if err != nil {
		return Migration{}, err
	}
	var told struct {
		ErrorDesc string `json:"error-desc"`
		Downtime  int64  // milliseconds
		TotalTime int64  `json:"total-time"` // milliseconds
	}
	if err := json.Unmarshal(info, &told); err != nil {
		return Migration{}, err
	}
	if status != "completed" {
		return Migration{}, errors.New(status + ": " + told.ErrorDesc)
	}
	resumed, err := target.monitor.await(ctx, arrived, func(e Event) bool { return e.Name == "RESUME" })
	return Migration{
		Resumed:  resumed.At,
		Downtime: time.Duration(told.Downtime) * time.Millisecond,
		Total:    time.Duration(told.TotalTime) * time.Millisecond,
	}, err
}
