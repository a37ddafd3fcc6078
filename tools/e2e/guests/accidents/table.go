package accidents

import (
	"errors"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// The endpoint's ends, and what its table is called in each family of nf_tables.
const (
	device    = "veth-imds"
	port      = "veth-imds-br"
	tableName = "imds"
)

// accident is something that happens to a pod whose guest is served.
type accident struct {
	name   string
	happen func(*story) error
	// mend is what others than the project do then: virt-handler, the CNI plugin. nil: nothing.
	mend func(*story) error
	// initAnew and listensAnew: imds-init, or imds-server, is back only when it has said so once more. The
	// connections of before have ended with the process, or with the device by which they came.
	initAnew, listensAnew bool
	// unplugged: the guest has lost its NIC, and gets it back when all has healed.
	unplugged bool
	// unruled: the rules of the bridge are gone for a moment.
	unruled bool
	// ipv6: the guest asks over IPv6, which it is about.
	ipv6 bool
	// ends: the life of a process.
	ends bool
}

// accidentsOf are those that can happen in a binding.
func accidentsOf(binding podnet.Binding) []accident {
	all := []accident{
		{name: "server-killed", happen: func(s *story) error { return restart(s.vm.Server) }, listensAnew: true, ends: true},
		{name: "init-killed", happen: func(s *story) error { return restart(s.vm.Init) }, initAnew: true, ends: true},
		{name: "both-killed", happen: killBoth, initAnew: true, listensAnew: true, ends: true},
		{name: "nic-replugged", happen: unplugNIC, mend: plugTap, unplugged: true},
		{name: "bridge-remade", happen: removeBridge, mend: restoreBridge},
		{name: "veth-imds-deleted", happen: deleteLink(device), listensAnew: true},
		{name: "veth-imds-br-deleted", happen: deleteLink(port), listensAnew: true},
		{name: "veth-imds-br-off-bridge", happen: takeOffBridge},
		{name: "bridge-table-deleted", happen: deleteTable(nftables.TableFamilyBridge), unruled: true},
		{name: "ip-table-deleted", happen: deleteTable(nftables.TableFamilyIPv4)},
		{name: "arp-table-deleted", happen: deleteTable(nftables.TableFamilyARP)},
		{name: "ip6-table-deleted", happen: deleteTable(nftables.TableFamilyIPv6), ipv6: true},
		{name: "address-deleted", happen: deleteAddress(netlink.FAMILY_V4)},
		{name: "ipv6-address-deleted", happen: deleteAddress(netlink.FAMILY_V6), ipv6: true},
		{name: "rule-deleted", happen: deleteRule},
		{name: "routes-deleted", happen: deleteRoutes},
		{name: "ipv6-route-deleted", happen: deleteLinkLocalRoute, ipv6: true},
		{name: "port-isolation-ended", happen: endIsolation(port)},
	}
	if binding == podnet.Bridge {
		all = append(all, accident{name: "uplink-isolation-ended", happen: endIsolation("eth0-nic")})
	}
	return all
}

// sidecar is what the kubelet starts anew when it ends.
type sidecar interface {
	Kill()
	Start() error
}

// restart does it at once, as the kubelet does at the first time. Its back-off at the next ones is left out.
func restart(c sidecar) error {
	c.Kill()
	return c.Start()
}

func killBoth(s *story) error {
	s.vm.Init.Kill()
	s.vm.Server.Kill()
	return errors.Join(s.vm.Init.Start(), s.vm.Server.Start())
}

func unplugNIC(s *story) error { s.vm.UnplugPrimary(); return nil }

func plugTap(s *story) error { return s.vm.Net.PlugTap() }

// plugNIC gives the guest its NIC back. No event tells in the guest that it is there.
func (s *story) plugNIC() {
	s.vm.PlugNIC()
	s.vm.Shell("for i in $(seq 500); do test -d /sys/class/net/eth0 && exit 0; usleep 20000; done; exit 1")
	s.vm.Configure("eth0")
}

func removeBridge(s *story) error { s.vm.RemoveBridge(); return nil }

func restoreBridge(s *story) error { s.vm.RestoreBridge(); return nil }

func deleteLink(name string) func(*story) error {
	return func(s *story) error {
		link, err := s.link(name)
		if err != nil {
			return err
		}
		return s.netlink().LinkDel(link)
	}
}

func takeOffBridge(s *story) error {
	link, err := s.link(port)
	if err != nil {
		return err
	}
	return s.netlink().LinkSetNoMaster(link)
}

func deleteTable(family nftables.TableFamily) func(*story) error {
	return func(s *story) error {
		nft, err := s.vm.Net.Pod.Nftables()
		if err != nil {
			return err
		}
		nft.DelTable(&nftables.Table{Name: tableName, Family: family})
		return nft.Flush()
	}
}

func deleteAddress(family int) func(*story) error {
	return func(s *story) error {
		link, err := s.link(device)
		if err != nil {
			return err
		}
		addresses, err := s.netlink().AddrList(link, family)
		if err == nil && len(addresses) != 1 {
			err = fmt.Errorf("%s has %d addresses of family %d", device, len(addresses), family)
		}
		if err != nil {
			return err
		}
		return s.netlink().AddrDel(link, &addresses[0])
	}
}

// deleteLinkLocalRoute takes away the way by which answers over IPv6 go.
func deleteLinkLocalRoute(s *story) error {
	link, err := s.link(device)
	if err != nil {
		return err
	}
	return s.netlink().RouteDel(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.ParseIP("fe80::"), Mask: net.CIDRMask(64, 128)},
	})
}

// rule finds the policy rule for answers.
func (s *story) rule() (*netlink.Rule, error) {
	rules, err := s.netlink().RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if r.Src != nil && r.Src.IP.Equal(podnet.MetadataAddr.AsSlice()) {
			return &r, nil
		}
	}
	return nil, fmt.Errorf("no rule from %s", podnet.MetadataAddr)
}

func deleteRule(s *story) error {
	rule, err := s.rule()
	if err != nil {
		return err
	}
	return s.netlink().RuleDel(rule)
}

func deleteRoutes(s *story) error {
	rule, err := s.rule()
	if err != nil {
		return err
	}
	routes, err := s.netlink().RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: rule.Table}, netlink.RT_FILTER_TABLE)
	if err == nil && len(routes) == 0 {
		err = fmt.Errorf("no routes in table %d", rule.Table)
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range routes {
		errs = append(errs, s.netlink().RouteDel(&r))
	}
	return errors.Join(errs...)
}

func endIsolation(name string) func(*story) error {
	return func(s *story) error {
		link, err := s.link(name)
		if err != nil {
			return err
		}
		return s.netlink().LinkSetIsolated(link, false)
	}
}

func (s *story) netlink() *netlink.Handle               { return s.vm.Net.Pod.Netlink() }
func (s *story) link(name string) (netlink.Link, error) { return s.netlink().LinkByName(name) }
