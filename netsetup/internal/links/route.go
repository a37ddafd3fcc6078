package links

import (
	"fmt"
	"net"

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

// ensureRoute makes sure of the table's one route and of the rule that leads
// to it.
func ensureRoute(device netlink.Link) (changed bool, err error) {
	routed, err := ensureDefault(device)
	if err != nil {
		return false, err
	}
	ruled, err := ensureRule()
	return routed || ruled, err
}

func ensureDefault(device netlink.Link) (changed bool, err error) {
	want := &netlink.Route{
		LinkIndex: device.Attrs().Index, Table: answersTable, Scope: unix.RT_SCOPE_LINK,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
	if err != nil {
		return false, fmt.Errorf("list the routes of table %d: %w", answersTable, err)
	}
	if len(have) > 0 {
		return false, nil
	}
	if err := netlink.RouteReplace(want); err != nil {
		return false, fmt.Errorf("add the default route by %s to table %d: %w", wiring.Device, answersTable, err)
	}
	return true, nil
}

func ensureRule() (changed bool, err error) {
	want := netlink.NewRule()
	want.Family, want.Table, want.Priority = netlink.FAMILY_V4, answersTable, answersPriority
	want.Src = addressNet()
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

// addressNet is the endpoint's address in the netlink package's form.
func addressNet() *net.IPNet {
	return &net.IPNet{IP: wiring.Address.Addr().AsSlice(), Mask: net.CIDRMask(wiring.Address.Bits(), 32)}
}
