package bindings

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// The project's own links.
var ourLinks = []string{"veth-imds", "veth-imds-br"}

// unchanged compares the guest with what it was before anything was asked, and the pod with one that is wired the same
// way without the project. It comes after the columns that change something for their purposes: that must be gone too.
func (sc *scene) unchanged(t *suite.T, vm *stage.VM) {
	if now := guestRoutes(vm); now != sc.routes {
		t.Errorf("the guest had\n%s\nand has\n%s", sc.routes, now)
	}
	if strings.Contains(sc.routes, podnet.MetadataAddr.String()) {
		t.Errorf("the guest was given a route to the address: %s", sc.routes)
	}
	got, err := describe(vm.Net.Pod)
	t.Check(err)
	want, err := sc.describeTwin()
	t.Check(err)
	if !slices.Equal(got, want) {
		t.Errorf("the pod's network is\n%s\nand without the project\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	sc.bridgeKeepsItsMAC(t, vm)
}

// describeTwin describes a pod of the same kind without the project.
func (sc *scene) describeTwin() (lines []string, err error) {
	twin, err := podnet.New(sc.network)
	if err != nil {
		return nil, err
	}
	defer twin.Close()
	if sc.passt {
		return describe(twin.Pod)
	}
	if err := twin.Wire(); err != nil {
		return nil, err
	}
	if sc.second != "" {
		if err := twin.AddSecondaryBridge(sc.second); err != nil {
			return nil, err
		}
	}
	return describe(twin.Pod)
}

// describe is what is the same in each pod of a kind: its links but the project's, with their MTUs and IPv4 addresses,
// and the routes of the main table.
func describe(n *podnet.Namespace) (lines []string, err error) {
	links, err := n.Netlink().LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	for _, link := range links {
		a := link.Attrs()
		if slices.Contains(ourLinks, a.Name) {
			continue
		}
		up := a.Flags&net.FlagUp != 0
		lines = append(lines, fmt.Sprintf("link %s: %s, up %t, MTU %d, port of %q", a.Name, link.Type(), up, a.MTU, names[a.MasterIndex]))
		addresses, err := n.Netlink().AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return nil, err
		}
		for _, address := range addresses {
			lines = append(lines, fmt.Sprintf("address %s of %s", address.IPNet, a.Name))
		}
	}
	routes, err := n.Netlink().RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("route %s via %s dev %s src %s scope %s", r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Scope))
	}
	slices.Sort(lines)
	return lines, nil
}

// bridgeKeepsItsMAC looks for the MACs of the endpoint where a bridge could have taken one from its port.
func (sc *scene) bridgeKeepsItsMAC(t *suite.T, vm *stage.VM) {
	links, err := vm.Net.Pod.Netlink().LinkList()
	t.Check(err)
	ours := map[string]bool{}
	for _, link := range links {
		if slices.Contains(ourLinks, link.Attrs().Name) {
			ours[link.Attrs().HardwareAddr.String()] = true
		}
	}
	for _, link := range links {
		if a := link.Attrs(); link.Type() == "bridge" && ours[a.HardwareAddr.String()] {
			t.Errorf("the bridge %s has taken the MAC %s of the endpoint", a.Name, a.HardwareAddr)
		}
	}
}
