package links

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// EnsureEndpoint makes sure that the veth pair is there and up, that its device
// carries the IPv4 address and is the way back for answers, and that the kernel gives
// neither end an IPv6 address of its own making. Links of those names that are not our
// pair are replaced. It says whether it had to change anything; then the inventory is
// out of date.
func EnsureEndpoint(inv Inventory) (changed bool, err error) {
	device, port, made, err := ensurePair(inv)
	if err != nil {
		return true, err
	}
	return all(made,
		func() (bool, error) { return ensureNoOwnAddress(device, port) },
		func() (bool, error) { return ensureConf(device) },
		func() (bool, error) { return ensureAddress(device) },
		func() (bool, error) { return ensureUp(port) },
		func() (bool, error) { return ensureUp(device) },
		func() (bool, error) { return ensureRoutes(device) },
		ensureRule,
		func() (bool, error) { return ensureGateway(device, wiring.Gateway) },
	)
}

// ensureNoOwnAddress keeps the kernel from giving either end an IPv6 address of its own
// making, and takes what it has given.
func ensureNoOwnAddress(device, port netlink.Link) (changed bool, err error) {
	return all(false,
		func() (bool, error) { return ensureNoOwnIPv6(device) },
		func() (bool, error) { return ensureNoOwnIPv6(port) },
		func() (bool, error) { return ensureOnly(port, netlink.FAMILY_V6, nil) },
	)
}

// all calls functions that each ensure something, until one fails, and says whether
// anything was changed.
func all(changed bool, ensure ...func() (bool, error)) (bool, error) {
	for _, f := range ensure {
		did, err := f()
		if err != nil {
			return true, err
		}
		changed = changed || did
	}
	return changed, nil
}

// ensurePair returns the ends of the pair, made anew where the links of those
// names are no pair.
func ensurePair(inv Inventory) (device, port netlink.Link, made bool, err error) {
	device, port = inv.named(wiring.Device), inv.named(wiring.Port)
	if isPair(device, port) {
		return device, port, false, nil
	}
	for _, stranger := range []netlink.Link{device, port} {
		if stranger == nil {
			continue
		}
		// With one end of a veth pair the other is gone too.
		if err := netlink.LinkDel(stranger); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, nil, false, fmt.Errorf("replace link %s, which is not ours: %w", stranger.Attrs().Name, err)
		}
	}
	device, port, err = makePair()
	return device, port, true, err
}

// isPair says whether the two links are the ends of one veth pair in this
// namespace, with the MACs that we give them.
func isPair(device, port netlink.Link) bool {
	if device == nil || port == nil || device.Type() != "veth" || port.Type() != "veth" {
		return false
	}
	d, p := device.Attrs(), port.Attrs()
	return d.ParentIndex == p.Index && p.ParentIndex == d.Index &&
		bytes.Equal(d.HardwareAddr, wiring.DeviceMAC) && bytes.Equal(p.HardwareAddr, wiring.PortMAC)
}

// makePair makes the two ends, both down: IPv6 gives an interface its link-local
// address when it comes up, and by then it must have been told not to.
func makePair() (device, port netlink.Link, err error) {
	// One queue: the kernel makes as many as the node has CPUs, and charges whoever
	// makes the pair for them, which is one agent for all pods of the node.
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: wiring.Device, HardwareAddr: wiring.DeviceMAC, NumTxQueues: 1, NumRxQueues: 1})
	pair.PeerName, pair.PeerHardwareAddr = wiring.Port, wiring.PortMAC
	pair.PeerNumTxQueues, pair.PeerNumRxQueues = 1, 1
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, nil, fmt.Errorf("make veth pair %s, %s: %w", wiring.Device, wiring.Port, err)
	}
	if device, err = netlink.LinkByName(wiring.Device); err != nil {
		return nil, nil, fmt.Errorf("find link %s, just made: %w", wiring.Device, err)
	}
	if port, err = netlink.LinkByName(wiring.Port); err != nil {
		return nil, nil, fmt.Errorf("find link %s, just made: %w", wiring.Port, err)
	}
	return device, port, nil
}

func ensureAddress(device netlink.Link) (changed bool, err error) {
	return ensureOnly(device, netlink.FAMILY_V4, &netlink.Addr{IPNet: ipNet(wiring.Address), Scope: unix.RT_SCOPE_LINK})
}

// ensureOnly makes an address the only one of its family on a link; nil: it has none.
func ensureOnly(link netlink.Link, family int, want *netlink.Addr) (changed bool, err error) {
	name := link.Attrs().Name
	addresses, err := netlink.AddrList(link, family)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	found := want == nil
	for _, have := range addresses {
		if want != nil && have.Equal(*want) && have.Scope == want.Scope && have.Flags&want.Flags == want.Flags {
			found = true
			continue
		}
		if err := netlink.AddrDel(link, &have); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return changed, fmt.Errorf("delete address %s from %s: %w", have.IPNet, name, err)
		}
		changed = true
	}
	if found {
		return changed, nil
	}
	if err := netlink.AddrReplace(link, want); err != nil {
		return changed, fmt.Errorf("add address %s to %s: %w", want.IPNet, name, err)
	}
	return true, nil
}

// ensureUp sets one end up, and has it use ARP. Both are up long before there is a bridge: the
// kernel gives a veth its queue only some time after its peer came up, and
// drops what is sent until then, which would be the first answer.
func ensureUp(end netlink.Link) (changed bool, err error) {
	attrs := end.Attrs()
	if attrs.RawFlags&unix.IFF_NOARP != 0 {
		if err := netlink.LinkSetARPOn(end); err != nil {
			return false, fmt.Errorf("set ARP on for %s: %w", attrs.Name, err)
		}
		changed = true
	}
	if attrs.Flags&net.FlagUp != 0 {
		return changed, nil
	}
	if err := netlink.LinkSetUp(end); err != nil {
		return false, fmt.Errorf("set %s up: %w", attrs.Name, err)
	}
	return true, nil
}
