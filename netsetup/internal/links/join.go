package links

import (
	"fmt"
	"net"

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
	device, err := inv.find(wiring.Device)
	if err != nil {
		return false, err
	}
	ports, err := readPorts()
	if err != nil {
		return false, err
	}
	return all(false,
		func() (bool, error) { return ensureIsolated(inv, ports, w.Uplinks, true) },
		// Where the endpoint has been before it leaves nothing behind.
		func() (bool, error) { return ensureIsolated(inv, ports, w.OtherUplinks, false) },
		func() (bool, error) {
			resized, err := ensureMTU(inv, w.MTU)
			if err != nil || !resized {
				return resized, err
			}
			// A link that IPv6 can be on again has an address of its own.
			_, err = ensureNoOwnAddress(device, port)
			return true, err
		},
		func() (bool, error) { return enslave(port, ports, w.Bridge) },
		func() (bool, error) { return false, pinMACs(inv, w) },
	)
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

// ensureIsolated makes ports isolated, or not.
func ensureIsolated(inv Inventory, ports map[int]bridgePort, names []string, isolated bool) (changed bool, err error) {
	for _, name := range names {
		port, err := inv.find(name)
		if err != nil {
			return changed, err
		}
		have, isPort := ports[port.Attrs().Index]
		if !isPort || have.isolated == isolated {
			continue
		}
		if err := setPort(port, have, isolated); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
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

// enslave makes the endpoint's port an isolated port of the bridge that passes frames.
func enslave(port netlink.Link, ports map[int]bridgePort, bridge wiring.Link) (changed bool, err error) {
	have := ports[port.Attrs().Index]
	if port.Attrs().MasterIndex != bridge.Index {
		if err := netlink.LinkSetMasterByIndex(port, bridge.Index); err != nil {
			return false, fmt.Errorf("make %s a port of %s: %w", wiring.Port, bridge.Name, err)
		}
		have, changed = bridgePort{forwarding: true}, true
	}
	// A port that has just come up forwards by itself, and its event brings us back.
	if port.Attrs().RawFlags&unix.IFF_RUNNING == 0 {
		have.forwarding = true
	}
	if have.isolated && have.forwarding {
		return changed, nil
	}
	return true, setPort(port, have, true)
}

// pinMACs tells the bridge where the endpoint's MAC is, and where the guests': without
// the entries a frame would be flooded to all ports, and the bridge would believe whoever
// sends from those MACs next, even by a frame that no rule sees, to a link-local group
// (IEEE 802.1D). It replaces what is there, and causes no event that we wait for.
func pinMACs(inv Inventory, w wiring.Wiring) error {
	at := map[string]net.HardwareAddr{wiring.Port: wiring.DeviceMAC}
	if len(w.Guests) == 1 { // of several nobody knows at which
		at[w.Guests[0].Name] = wiring.GuestsMAC
	}
	for name, mac := range at {
		port, err := inv.find(name)
		if err != nil {
			return err
		}
		err = netlink.NeighSet(&netlink.Neigh{
			LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | ntfSticky,
			State: netlink.NUD_NOARP, HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("pin the MAC %s to bridge port %s: %w", mac, name, err)
		}
	}
	return nil
}

// ntfSticky is NTF_STICKY of include/uapi/linux/neighbour.h: the entry does not move.
const ntfSticky = 0x40
