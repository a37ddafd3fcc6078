package links

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// leastMTUOfIPv6 is the least MTU of a link that IPv6 can be on, in bytes (RFC 8200
// section 5).
const leastMTUOfIPv6 = 1280

// metric tells our route from those of the same prefix by other devices: a route of one
// metric replaces another of the same, whatever its device.
const metric = 1690

// EnsureIPv6 makes sure of the endpoint's IPv6 address and of the way back for its
// answers. It says whether the endpoint has them: not on a kernel without IPv6, not in
// a pod that has switched it off, and not with an MTU of less than 1280.
func EnsureIPv6(inv Inventory, mtu int) (served, changed bool, err error) {
	device, err := inv.find(wiring.Device)
	if err != nil || mtu != 0 && mtu < leastMTUOfIPv6 {
		return false, false, err
	}
	have, err := readFamilies(device)
	if err != nil || !have.hasIPv6 || at(have.ipv6, devconfDisableIPv6) != 0 {
		return false, false, err
	}
	changed, err = all(false,
		func() (bool, error) { return ensureAddressIPv6(device) },
		func() (bool, error) { return ensureRouteIPv6(device) },
		func() (bool, error) { return ensureGateway(device, wiring.GatewayIPv6) },
	)
	return err == nil, changed, err
}

// ensureAddressIPv6 adds the address without duplicate address detection: it is the
// same in every pod, and whoever else claims it is not believed.
func ensureAddressIPv6(device netlink.Link) (changed bool, err error) {
	return ensureOnly(device, netlink.FAMILY_V6, &netlink.Addr{
		IPNet: ipNet(wiring.AddressIPv6), Scope: unix.RT_SCOPE_LINK, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
	})
}

// ensureRouteIPv6 sends all answers to the gateway that stands for the guests.
func ensureRouteIPv6(device netlink.Link) (changed bool, err error) {
	want := &netlink.Route{
		LinkIndex: device.Attrs().Index, Table: unix.RT_TABLE_MAIN, Dst: ipNet(wiring.AddressIPv6.Masked()),
		Gw: wiring.GatewayIPv6.AsSlice(), Priority: metric, Flags: int(netlink.FLAG_ONLINK),
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V6, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
	if err != nil {
		return false, fmt.Errorf("list the IPv6 routes by %s: %w", wiring.Device, err)
	}
	return ensureRoutesAre(have, want)
}
