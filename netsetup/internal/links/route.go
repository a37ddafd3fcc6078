package links

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// Answers have a routing table of their own, in which everybody is behind the
// endpoint. The kernel looks there for the sender of a question too, and would
// otherwise drop it (rp_filter) where the pod has no route to the guest's
// address: on a secondary network, or with the address changed by the guest.
const (
	answersTable    = 0xa9fea9fe // 169.254.169.254 as a number
	answersPriority = 169
)

// ensureRoute makes sure of the table's two routes and of the rule that leads
// to them.
func ensureRoute(device netlink.Link) (changed bool, err error) {
	index := device.Attrs().Index
	routed, err := ensureInTable(&netlink.Route{
		LinkIndex: index, Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_LINK,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	})
	if err != nil {
		return false, err
	}
	kept, err := ensureInTable(&netlink.Route{
		LinkIndex: index, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Dst: loopback,
	})
	if err != nil {
		return false, err
	}
	ruled, err := ensureRule()
	return routed || kept || ruled, err
}

// loopback are the addresses whose answers never leave the pod. imds-server is
// bound to the device, and by this route alone it can answer the pod's probes,
// which come from 127.0.0.1: the kernel's own is by lo. So it is sure as well
// that nobody else has a conversation with it from there, even where
// route_localnet lets such a packet in.
var loopback = &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}

// ensureInTable makes sure of a route of the table, which has one of each type.
func ensureInTable(want *netlink.Route) (changed bool, err error) {
	want.Table = answersTable
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF|netlink.RT_FILTER_TYPE)
	if err != nil {
		return false, fmt.Errorf("list the routes of table %d: %w", answersTable, err)
	}
	if len(have) > 0 {
		return false, nil
	}
	if err := netlink.RouteReplace(want); err != nil {
		return false, fmt.Errorf("add the route to %s by %s to table %d: %w", want.Dst, wiring.Device, answersTable, err)
	}
	return true, nil
}

func ensureRule() (changed bool, err error) {
	want := netlink.NewRule()
	want.Family, want.Table, want.Priority = netlink.FAMILY_V4, answersTable, answersPriority
	want.Src = ipNet(wiring.Address)
	have, err := netlink.RuleListFiltered(netlink.FAMILY_V4, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_SRC)
	if err != nil {
		return false, fmt.Errorf("list the routing rules: %w", err)
	}
	if len(have) > 0 {
		return false, nil
	}
	if err := netlink.RuleAdd(want); err != nil {
		return false, fmt.Errorf("add the routing rule from %s: %w", wiring.Address, err)
	}
	return true, nil
}

// ipNet is a prefix, or an address with its prefix length, in the netlink
// package's form.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
