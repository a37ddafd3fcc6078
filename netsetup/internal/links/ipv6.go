package links

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// SpeaksIPv6 says whether the endpoint's device may have an IPv6 address: not on
// a kernel without IPv6, and not in a pod that has switched it off. Where the
// device is still to be made, a new one's setting tells.
func (inv Inventory) SpeaksIPv6() (bool, error) {
	for _, conf := range []string{wiring.Device, "default"} {
		text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + conf + "/disable_ipv6")
		if errors.Is(err, fs.ErrNotExist) || inv.named(wiring.Device) == nil && conf == wiring.Device {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read whether IPv6 is disabled: %w", err)
		}
		return strings.TrimSpace(string(text)) == "0", nil
	}
	return false, nil
}

// ensureIPv6 makes sure of the IPv6 address and of its prefix's route, by which
// the answers leave. Both go when the device is set down, so it has to be up.
func ensureIPv6(device netlink.Link, ipv6 bool) (changed bool, err error) {
	if !ipv6 {
		return false, nil
	}
	addressed, err := ensureAddressIPv6(device)
	if err != nil {
		return false, err
	}
	routed, err := ensureLinkLocalRoute(device)
	return addressed || routed, err
}

// ensureAddressIPv6 adds the address without duplicate address detection: it is
// the same in every pod, and whoever else claims it is not believed.
func ensureAddressIPv6(device netlink.Link) (changed bool, err error) {
	addresses, err := netlink.AddrList(device, netlink.FAMILY_V6)
	if err != nil {
		return false, fmt.Errorf("list IPv6 addresses of %s: %w", wiring.Device, err)
	}
	want := &netlink.Addr{
		IPNet: ipNet(wiring.AddressIPv6),
		Scope: unix.RT_SCOPE_LINK,
		Flags: unix.IFA_F_NODAD,
	}
	for _, have := range addresses {
		if have.Equal(*want) {
			return false, nil
		}
	}
	if err := netlink.AddrReplace(device, want); err != nil {
		return false, fmt.Errorf("add address %s to %s: %w", wiring.AddressIPv6, wiring.Device, err)
	}
	return true, nil
}

// ensureLinkLocalRoute makes sure of the route that the kernel makes with the
// address. Other devices have one of the same destination, so that it can be
// appended only.
func ensureLinkLocalRoute(device netlink.Link) (changed bool, err error) {
	want := &netlink.Route{
		LinkIndex: device.Attrs().Index, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_KERNEL,
		Dst: ipNet(wiring.AddressIPv6.Masked()),
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V6, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	if err != nil {
		return false, fmt.Errorf("list the routes to %s: %w", wiring.AddressIPv6.Masked(), err)
	}
	if len(have) > 0 {
		return false, nil
	}
	if err := netlink.RouteAppend(want); err != nil {
		return false, fmt.Errorf("add the route to %s by %s: %w", wiring.AddressIPv6.Masked(), wiring.Device, err)
	}
	return true, nil
}
