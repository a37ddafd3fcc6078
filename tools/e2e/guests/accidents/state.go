package accidents

import (
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// state is all that there is in a pod's network, a line each. What a thing gets anew when it is made anew,
// such as an index, is not part of it.
type state struct{ lines []string }

// readState reads it. It fails where something goes away while it reads.
func readState(pod *podnet.Namespace) (*state, error) {
	var s state
	for _, read := range []func(*podnet.Namespace) error{s.readLinks, s.readRoutes, s.readRules, s.readTables} {
		if err := read(pod); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

func (s *state) add(format string, values ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, values...))
}

// difference says which lines are missing after something, and which are more: none where all is as it was.
func (s *state) difference(after *state) []string {
	more := map[string]int{}
	for _, line := range after.lines {
		more[line]++
	}
	for _, line := range s.lines {
		more[line]--
	}
	var lines []string
	for _, line := range slices.Sorted(maps.Keys(more)) {
		if more[line] < 0 {
			lines = append(lines, "missing: "+line)
		} else if more[line] > 0 {
			lines = append(lines, "more: "+line)
		}
	}
	return lines
}

func (s *state) readLinks(pod *podnet.Namespace) error {
	links, err := pod.Netlink().LinkList()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		isolated := false
		if a.MasterIndex != 0 {
			info, err := pod.Netlink().LinkGetProtinfo(l)
			if err != nil {
				return err
			}
			isolated = info.Isolated
		}
		s.add("link %s, %s, up %t, MTU %d, port of %q, isolated %t",
			a.Name, l.Type(), a.Flags&net.FlagUp != 0, a.MTU, names[a.MasterIndex], isolated)
		family := netlink.FAMILY_V4
		if a.Name == device || a.Name == port {
			family = netlink.FAMILY_ALL
			s.add("MAC %s of %s", a.HardwareAddr, a.Name)
		}
		addresses, err := pod.Netlink().AddrList(l, family)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			s.add("address %s, scope %d, on %s", address.IPNet, address.Scope, a.Name)
		}
		if err := s.readPinned(pod, l); err != nil {
			return err
		}
	}
	return nil
}

// readPinned reads the entries that somebody has made in the bridge's forwarding table.
func (s *state) readPinned(pod *podnet.Namespace, l netlink.Link) error {
	entries, err := pod.Netlink().NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.State&netlink.NUD_NOARP != 0 && e.MasterIndex != 0 {
			s.add("forwarding to %s pinned to %s", e.HardwareAddr, l.Attrs().Name)
		}
	}
	return nil
}

// readRoutes reads all routes of IPv4, and those of IPv6 by our links: others have them from their MACs.
func (s *state) readRoutes(pod *podnet.Namespace) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := pod.Netlink().RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			link, err := pod.Netlink().LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			name := link.Attrs().Name
			if family == netlink.FAMILY_V4 || name == device || name == port {
				s.add("route to %v via %v by %s, table %d, type %d, scope %d", r.Dst, r.Gw, name, r.Table, r.Type, r.Scope)
			}
		}
	}
	return nil
}

func (s *state) readRules(pod *podnet.Namespace) error {
	rules, err := pod.Netlink().RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		s.add("rule %d from %v to table %d", r.Priority, r.Src, r.Table)
	}
	return nil
}

// readTables reads the rules of nf_tables by the comments that ours have, and the number of their expressions.
func (s *state) readTables(pod *podnet.Namespace) error {
	nft, err := pod.Nftables()
	if err != nil {
		return err
	}
	chains, err := nft.ListChains()
	if err != nil {
		return err
	}
	for _, chain := range chains {
		rules, err := nft.GetRules(chain.Table, chain)
		if err != nil {
			return err
		}
		s.add("chain %s of table %s, family %d, hook %s", chain.Name, chain.Table.Name, chain.Table.Family, hook(chain))
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			s.add("rule %q, %d expressions, in chain %s of table %s, family %d",
				comment, len(r.Exprs), chain.Name, chain.Table.Name, chain.Table.Family)
		}
	}
	return nil
}

func hook(chain *nftables.Chain) string {
	if chain.Hooknum == nil || chain.Priority == nil {
		return "none"
	}
	return fmt.Sprintf("%d at %d", *chain.Hooknum, *chain.Priority)
}
