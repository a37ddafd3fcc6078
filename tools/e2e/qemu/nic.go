package qemu

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

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
	if _, err := g.monitor.execute(ctx, "netdev_add", nic.netdev(id)); err != nil {
		return "", err
	}
	if _, err := g.monitor.execute(ctx, "device_add", nic.device(id)); err != nil {
		return "", err
	}
	return id, nil
}

// Unplug takes a NIC from the running guest; those that it was booted with are nic0, nic1, ... It returns when the
// guest has let it go and QEMU has closed the tap.
func (g *Guest) Unplug(ctx context.Context, id string) error {
	position := g.monitor.position()
	if _, err := g.monitor.execute(ctx, "device_del", map[string]any{"id": id}); err != nil {
		return err
	}
	_, err := g.monitor.await(ctx, position, func(e Event) bool {
		return e.Name == "DEVICE_DELETED" && strings.Contains(string(e.Data), fmt.Sprintf("%q: %q", "device", id))
	})
	if err != nil {
		return fmt.Errorf("unplugging %s: %w", id, err)
	}
	_, err = g.monitor.execute(ctx, "netdev_del", map[string]any{"id": id})
	return err
}
