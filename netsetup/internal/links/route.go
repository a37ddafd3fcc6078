package links

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// Answers have a routing table of their own, in which everybody is behind the
// endpoint. The kernel looks there for the sender of a question too, and would
// otherwise drop it (rp_filter) where the pod has no route to the guest's
// address: on a secondary network, or with the address changed by the guest.
const (
	answersTable    = 0xa9fea9fd // 169.254.169.253 as a number
	answersPriority = 170
)

// ensureRoutes makes sure of the table's two routes. All answers have the gateway that
// stands for the guests as next hop, so that the kernel keeps one neighbour, and not
// one for each sender.
func ensureRoutes(device netlink.Link) (changed bool, err error) {
	index := device.Attrs().Index
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: answersTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, fmt.Errorf("list the routes of table %d: %w", answersTable, err)
	}
	return ensureRoutesAre(have,
		&netlink.Route{
			LinkIndex: index, Table: answersTable, Type: unix.RTN_UNICAST, Gw: wiring.Gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		},
		&netlink.Route{LinkIndex: index, Table: answersTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Dst: loopback},
	)
}

// loopback are the addresses whose answers never leave the pod. imds-server is
// bound to the device, and by this route alone it can answer the pod's probes,
// which come from 127.0.0.1: the kernel's own is by lo. So it is sure as well
// that nobody else has a conversation with it from there, even where
// route_localnet lets such a packet in.
var loopback = &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}

// ensureRoutesAre makes the routes that are there those that should be: others are
// deleted, missing ones added.
func ensureRoutesAre(have []netlink.Route, want ...*netlink.Route) (changed bool, err error) {
	for _, route := range have {
		if slices.ContainsFunc(want, func(w *netlink.Route) bool { return sameRoute(*w, route) }) {
			continue
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("delete the route %s: %w", route, err)
		}
		changed = true
	}
	for _, route := range want {
		if slices.ContainsFunc(have, func(h netlink.Route) bool { return sameRoute(*route, h) }) {
			continue
		}
		if err := netlink.RouteReplace(route); err != nil {
			return changed, fmt.Errorf("add the route to %s by %s to table %d: %w", route.Dst, wiring.Device, route.Table, err)
		}
		changed = true
	}
	return changed, nil
}

// sameRoute compares what decides where a packet goes.
func sameRoute(want, have netlink.Route) bool {
	kind := func(r netlink.Route) int { return max(r.Type, unix.RTN_UNICAST) }
	return want.LinkIndex == have.LinkIndex && want.Table == have.Table && kind(want) == kind(have) &&
		want.Gw.Equal(have.Gw) && (want.Priority == 0 || want.Priority == have.Priority) &&
		want.Dst.String() == destination(have)
}

// destination is a route's, which the netlink package leaves out for a default one.
func destination(r netlink.Route) string {
	if r.Dst == nil {
		return "0.0.0.0/0"
	}
	return r.Dst.String()
}

// ensureRule makes sure that one routing rule leads to the table, and none that
// somebody has moved.
func ensureRule() (changed bool, err error) {
	want := netlink.NewRule()
	want.Family, want.Table, want.Priority = netlink.FAMILY_V4, answersTable, answersPriority
	want.Src = ipNet(wiring.Address)
	have, err := netlink.RuleListFiltered(netlink.FAMILY_V4, want, netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, fmt.Errorf("list the routing rules: %w", err)
	}
	found := false
	for _, rule := range have {
		if !found && rule.Priority == want.Priority && rule.Src != nil && rule.Src.String() == want.Src.String() && rule.Dst == nil && rule.IifName == "" && rule.OifName == "" && !rule.Invert {
			found = true
			continue
		}
		if err := netlink.RuleDel(&rule); err != nil && !errors.Is(err, unix.ENOENT) {
			return changed, fmt.Errorf("delete the routing rule %s: %w", rule, err)
		}
		changed = true
	}
	if found {
		return changed, nil
	}
	if err := netlink.RuleAdd(want); err != nil {
		return changed, fmt.Errorf("add the routing rule from %s: %w", wiring.Address, err)
	}
	return true, nil
}

// ensureGateway tells the kernel the MAC of the gateway that stands for the guests, so
// that it never asks for it.
func ensureGateway(device netlink.Link, gateway netip.Addr) (changed bool, err error) {
	family := netlink.FAMILY_V4
	if gateway.Is6() {
		family = netlink.FAMILY_V6
	}
	have, err := netlink.NeighList(device.Attrs().Index, family)
	if err != nil {
		return false, fmt.Errorf("list the neighbours on %s: %w", wiring.Device, err)
	}
	want := netlink.Neigh{
		LinkIndex: device.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
		IP: gateway.AsSlice(), HardwareAddr: wiring.GuestsMAC,
	}
	for _, n := range have {
		if n.IP.Equal(want.IP) && n.State == want.State && bytes.Equal(n.HardwareAddr, want.HardwareAddr) {
			return false, nil
		}
	}
	if err := netlink.NeighSet(&want); err != nil {
		return false, fmt.Errorf("tell the MAC of %s on %s: %w", gateway, wiring.Device, err)
	}
	return true, nil
}

// ipNet is a prefix, or an address with its prefix length, in the netlink
// package's form.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
