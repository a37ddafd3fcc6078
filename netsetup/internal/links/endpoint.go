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
// carries the addresses and is the way back for answers, and that the kernel
// gives neither end an IPv6 address of its own making. Without ipv6 it leaves
// out that family's address. Links of those names that are not our pair are
// replaced. It says whether it had to change anything; then the inventory is out
// of date.
func EnsureEndpoint(inv Inventory, ipv6 bool) (changed bool, err error) {
	device, port, made, err := ensurePair(inv)
	if err != nil {
		return true, err
	}
	changed = made
	for _, ensure := range []func() (bool, error){
		func() (bool, error) { return ensureConf(device) },
		func() (bool, error) { return ensureAddress(device) },
		func() (bool, error) { return ensureUp(port) },
		func() (bool, error) { return ensureUp(device) },
		func() (bool, error) { return ensureRoute(device) },
		func() (bool, error) { return ensureIPv6(device, ipv6) },
	} {
		did, err := ensure()
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

// makePair makes the two ends, both down: IPv6 gives an interface its
// link-local address when it comes up, and by then it must have been told not
// to.
func makePair() (device, port netlink.Link, err error) {
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: wiring.Device, HardwareAddr: wiring.DeviceMAC})
	pair.PeerName, pair.PeerHardwareAddr = wiring.Port, wiring.PortMAC
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, nil, fmt.Errorf("make veth pair %s, %s: %w", wiring.Device, wiring.Port, err)
	}
	if device, err = withoutIPv6(wiring.Device); err != nil {
		return nil, nil, err
	}
	port, err = withoutIPv6(wiring.Port)
	return device, port, err
}

func withoutIPv6(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s, just made: %w", name, err)
	}
	// A kernel without IPv6 has nothing to switch off.
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("switch off IPv6 addresses on %s: %w", name, err)
	}
	return link, nil
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

func ensureAddress(device netlink.Link) (changed bool, err error) {
	addresses, err := netlink.AddrList(device, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", wiring.Device, err)
	}
	want := &netlink.Addr{
		IPNet: ipNet(wiring.Address),
		Scope: unix.RT_SCOPE_LINK,
	}
	for _, have := range addresses {
		if have.Equal(*want) && have.Scope == want.Scope {
			return false, nil
		}
	}
	if err := netlink.AddrReplace(device, want); err != nil {
		return false, fmt.Errorf("add address %s to %s: %w", wiring.Address, wiring.Device, err)
	}
	return true, nil
}

// ensureUp sets one end up. Both are up long before there is a bridge: the
// kernel gives a veth its queue only some time after its peer came up, and
// drops what is sent until then, which would be the first answer.
func ensureUp(end netlink.Link) (changed bool, err error) {
	if end.Attrs().Flags&net.FlagUp != 0 {
		return false, nil
	}
	if err := netlink.LinkSetUp(end); err != nil {
		return false, fmt.Errorf("set %s up: %w", end.Attrs().Name, err)
	}
	return true, nil
}
