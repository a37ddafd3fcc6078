package links

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// EnsureJoined makes the endpoint's port a port of the wiring's bridge, or of
// none, and says whether it had to change anything. Two isolated ports of a
// bridge exchange no frame, so the network behind an uplink and the endpoint
// never see each other. The rules, which are there before, keep them apart for
// the moment in which the port is not isolated yet.
func EnsureJoined(inv Inventory, w wiring.Wiring) (changed bool, err error) {
	if !w.Joined() {
		return Part(inv)
	}
	port, err := inv.find(wiring.Port)
	if err != nil {
		return false, err
	}
	isolated, err := isolate(inv, w.Uplinks)
	if err != nil {
		return isolated, err
	}
	resized, err := ensureMTU(inv, w.MTU)
	if err != nil {
		return isolated, err
	}
	enslaved, err := enslave(port, w.Bridge)
	if err != nil {
		return true, err
	}
	if err := pinMAC(port); err != nil {
		return true, err
	}
	return isolated || resized || enslaved, nil
}

// Part takes the endpoint's port, where there is one, off its bridge, and says
// whether it had to.
func Part(inv Inventory) (changed bool, err error) {
	port := inv.named(wiring.Port)
	if port == nil || port.Attrs().MasterIndex == 0 {
		return false, nil
	}
	if err := netlink.LinkSetNoMaster(port); err != nil {
		return false, fmt.Errorf("take %s off its bridge: %w", wiring.Port, err)
	}
	return true, nil
}

func isolate(inv Inventory, ports []string) (changed bool, err error) {
	for _, name := range ports {
		port, err := inv.find(name)
		if err != nil {
			return changed, err
		}
		set, err := ensureIsolated(port)
		if err != nil {
			return changed, err
		}
		changed = changed || set
	}
	return changed, nil
}

func ensureIsolated(port netlink.Link) (changed bool, err error) {
	name := port.Attrs().Name
	info, err := netlink.LinkGetProtinfo(port)
	if err != nil {
		return false, fmt.Errorf("read the bridge port flags of %s: %w", name, err)
	}
	if info.Isolated {
		return false, nil
	}
	if err := netlink.LinkSetIsolated(port, true); err != nil {
		return false, fmt.Errorf("isolate bridge port %s: %w", name, err)
	}
	return true, nil
}

// ensureMTU gives both ends of the pair the MTU of the bridge's ports. With a
// smaller one the bridge would lower its own; with a larger one an answer
// could be too big for the guest's side.
func ensureMTU(inv Inventory, mtu int) (changed bool, err error) {
	for _, name := range []string{wiring.Device, wiring.Port} {
		end, err := inv.find(name)
		if err != nil {
			return changed, err
		}
		if end.Attrs().MTU == mtu {
			continue
		}
		if err := netlink.LinkSetMTU(end, mtu); err != nil {
			return changed, fmt.Errorf("set the MTU of %s to %d: %w", name, mtu, err)
		}
		changed = true
	}
	return changed, nil
}

func enslave(port netlink.Link, bridge wiring.Link) (changed bool, err error) {
	if port.Attrs().MasterIndex != bridge.Index {
		if err := netlink.LinkSetMasterByIndex(port, bridge.Index); err != nil {
			return false, fmt.Errorf("make %s a port of %s: %w", wiring.Port, bridge.Name, err)
		}
		changed = true
	}
	isolated, err := ensureIsolated(port)
	return changed || isolated, err
}

// pinMAC tells the bridge where the endpoint's MAC is. Without the entry the
// first question would be flooded to all ports, and the bridge would believe
// whoever sends from that MAC next. It replaces what is there, and causes no
// event that we wait for.
func pinMAC(port netlink.Link) error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: wiring.DeviceMAC,
	})
	if err != nil {
		return fmt.Errorf("pin the MAC %s to bridge port %s: %w", wiring.DeviceMAC, wiring.Port, err)
	}
	return nil
}
