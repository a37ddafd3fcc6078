package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu/qmp"
)

// Pause stops the guest's processor and its clock.
func (g *Guest) Pause(ctx context.Context) error { return g.does(ctx, "stop") }

// Resume has a paused guest go on.
func (g *Guest) Resume(ctx context.Context) error { return g.does(ctx, "cont") }

// Reset has the guest boot anew as the reset button does, without a word to it, and returns when its agent answers.
// For a reboot that the guest itself begins there is the shell command "reboot -f", and AwaitBoot.
func (g *Guest) Reset(ctx context.Context) error {
	boots := g.Agent.Boots()
	if err := g.does(ctx, "system_reset"); err != nil {
		return err
	}
	return g.AwaitBoot(ctx, boots)
}

// AwaitBoot returns when the guest has booted more often than that. It fails where that takes too long, or QEMU
// ends.
func (g *Guest) AwaitBoot(ctx context.Context, boots int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("the guest has not booted within %s", bootLimit))
	defer cancel()
	return g.during(ctx, func(ctx context.Context) error { return g.Agent.AwaitBoot(ctx, boots) })
}

func (g *Guest) does(ctx context.Context, command string) error {
	_, err := g.monitor.Execute(ctx, command, nil)
	return err
}

// nextNIC names the next NIC.
func (g *Guest) nextNIC() string {
	g.nics++
	return fmt.Sprintf("nic%d", g.nics-1)
}

// netdev is QEMU's end of the NIC's network.
func (n NIC) netdev(id string) map[string]any {
	if n.Stream != "" {
		return map[string]any{"type": "stream", "id": id, "server": false,
			"addr": map[string]any{"type": "unix", "path": n.Stream}}
	}
	return map[string]any{"type": "tap", "id": id, "ifname": n.Tap, "script": "no", "downscript": "no", "vhost": false}
}

// device is the guest's end of it.
func (n NIC) device(id string) map[string]any {
	device := map[string]any{"driver": "virtio-net-pci", "id": id, "netdev": id, "mac": n.MAC.String(), "romfile": ""}
	if n.MTU != 0 {
		device["host_mtu"] = n.MTU
	}
	return device
}

// commaList writes properties as QEMU's command line has them: the driver or the type first, members of members
// with a dot.
func commaList(properties map[string]any) string {
	var list []string
	var add func(prefix string, members map[string]any)
	add = func(prefix string, members map[string]any) {
		for _, name := range slices.Sorted(maps.Keys(members)) {
			value := members[name]
			switch {
			case prefix == "" && (name == "driver" || name == "type"):
				list = append([]string{fmt.Sprint(value)}, list...)
			case value == true:
				list = append(list, prefix+name+"=on")
			case value == false:
				list = append(list, prefix+name+"=off")
			default:
				if nested, ok := value.(map[string]any); ok {
					add(prefix+name+".", nested)
					continue
				}
				list = append(list, fmt.Sprintf("%s%s=%v", prefix, name, value))
			}
		}
	}
	add("", properties)
	return strings.Join(list, ",")
}

// Plug adds a NIC to the running guest, and returns the name by which Unplug takes it away.
func (g *Guest) Plug(ctx context.Context, nic NIC) (id string, err error) {
	id = g.nextNIC()
	if _, err := g.monitor.Execute(ctx, "netdev_add", nic.netdev(id)); err != nil {
		return "", err
	}
	if _, err := g.monitor.Execute(ctx, "device_add", nic.device(id)); err != nil {
		return "", err
	}
	return id, nil
}

// Unplug takes a NIC from the running guest; those that it was booted with are nic0, nic1, ... It returns when the
// guest has let it go and QEMU has closed the tap.
func (g *Guest) Unplug(ctx context.Context, id string) error {
	position := len(g.monitor.Events())
	if _, err := g.monitor.Execute(ctx, "device_del", map[string]any{"id": id}); err != nil {
		return err
	}
	_, err := g.monitor.Await(ctx, position, func(e qmp.Event) bool {
		return e.Name == "DEVICE_DELETED" && strings.Contains(string(e.Data), fmt.Sprintf("%q: %q", "device", id))
	})
	if err != nil {
		return fmt.Errorf("unplugging %s: %w", id, err)
	}
	_, err = g.monitor.Execute(ctx, "netdev_del", map[string]any{"id": id})
	return err
}

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

// MigrateTo moves the guest, with all that it is at, to a QEMU that waits for it, and ends this one. The agent goes with
// the guest.
//
// The guest stands still while its memory is copied, for some 0.6 s. QEMU can copy it while it runs, but one emulated
// guest of some fifty on a busy machine had broken memory afterwards; why was not found out.
func (g *Guest) MigrateTo(ctx context.Context, target *Guest) (Migration, error) {
	m, err := g.migrate(ctx, target)
	if err != nil {
		return m, fmt.Errorf("migrating a guest: %w", err)
	}
	target.Agent, g.Agent = g.Agent, guestagent.Client{}
	target.Agent.Move(target.port)
	return m, g.Close()
}

func (g *Guest) migrate(ctx context.Context, target *Guest) (Migration, error) {
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	for _, side := range []*Guest{g, target} {
		if _, err := side.monitor.Execute(ctx, "migrate-set-capabilities", events); err != nil {
			return Migration{}, err
		}
	}
	address := map[string]any{"uri": "unix:" + filepath.Join(target.folder, "migration")}
	sent, arrived := len(g.monitor.Events()), len(target.monitor.Events())
	if _, err := target.monitor.Execute(ctx, "migrate-incoming", address); err != nil {
		return Migration{}, err
	}
	if _, err := g.monitor.Execute(ctx, "stop", nil); err != nil {
		return Migration{}, err
	}
	if _, err := g.monitor.Execute(ctx, "migrate", address); err != nil {
		return Migration{}, err
	}
	if err := awaitMigrated(ctx, g.monitor, sent); err != nil {
		return Migration{}, err
	}
	if err := awaitMigrated(ctx, target.monitor, arrived); err != nil {
		return Migration{}, fmt.Errorf("the target: %w", err)
	}
	if _, err := target.monitor.Execute(ctx, "cont", nil); err != nil {
		return Migration{}, err
	}
	stopped, err := g.monitor.Await(ctx, sent, func(e qmp.Event) bool { return e.Name == "STOP" })
	if err != nil {
		return Migration{}, err
	}
	resumed, err := target.monitor.Await(ctx, arrived, func(e qmp.Event) bool { return e.Name == "RESUME" })
	return Migration{Stopped: stopped.At, Resumed: resumed.At}, err
}

// awaitMigrated returns when all of the guest has left, or arrived.
func awaitMigrated(ctx context.Context, m *qmp.Conn, position int) error {
	var status string
	_, err := m.Await(ctx, position, func(e qmp.Event) bool {
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
