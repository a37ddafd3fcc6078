package bindings

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// neighbourPatience is how long the neighbour waits for an answer. One that comes, comes within some milliseconds, and
// a late one is seen on the uplink.
const neighbourPatience = 120 * time.Millisecond

// neighbourAsks has the neighbour ask on every link that it has to the pod, at both addresses: by ARP or neighbour
// discovery, to everybody, and to each MAC that there is in the pod and in the guest. The pod knows the way back to it.
func (sc *scene) neighbourAsks(t *suite.T, vm *stage.VM) {
	defer sc.routeBack(t, vm)()
	questions := map[string]func(context.Context, string, net.HardwareAddr) (podnet.Reply, error){
		"IPv4": vm.Net.NeighbourAsksBy,
		"IPv6": vm.Net.NeighbourAsksIPv6By,
	}
	if sc.passt {
		questions["port of the redirection"] = func(ctx context.Context, _ string, mac net.HardwareAddr) (podnet.Reply, error) {
			return vm.Net.NeighbourAsksAt(ctx, mac, redirectPort)
		}
	}
	asked := 0
	for way, mac := range sc.ways(t, vm) {
		for _, uplink := range sc.uplinks() {
			for family, ask := range questions {
				ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
				reply, err := ask(ctx, uplink, mac)
				cancel()
				t.Check(err)
				if reply.Outcome != podnet.NoAnswer {
					t.Errorf("the neighbour on %s, which asks by %s %s: %v", uplink, family, way, reply)
				}
				asked++
			}
		}
	}
	t.Figure("%d", asked)
	// That no answer came is not because the service had gone.
	requireToken(t, sc.get(vm, "/v1/token"), sc.token)
}

// uplinks are the neighbour's links to the pod.
func (sc *scene) uplinks() []string {
	switch {
	case sc.network.Bystander:
		return []string{podnet.NeighbourInterface, podnet.BystanderInterface}
	case sc.second != "":
		return []string{podnet.NeighbourInterface, "up1"}
	}
	return []string{podnet.NeighbourInterface}
}

// ways are the MACs that the neighbour sends to, by how it has come to them.
func (sc *scene) ways(t *suite.T, vm *stage.VM) map[string]net.HardwareAddr {
	ways := map[string]net.HardwareAddr{
		"by ARP":       nil,
		"by broadcast": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	links, err := vm.Net.Pod.Netlink().LinkList()
	t.Check(err)
	for _, link := range links {
		if mac := link.Attrs().HardwareAddr; link.Attrs().Name != "lo" {
			ways["by the MAC of "+link.Attrs().Name] = mac
		}
	}
	guest, err := net.ParseMAC(strings.TrimSpace(vm.Shell("cat /sys/class/net/" + sc.nic + "/address")))
	t.Check(err)
	ways["by the guest's MAC"] = guest
	return ways
}

// routeBack gives the pod a route to the neighbour by the guest's bridge where that leads to the neighbour, as an
// operator's mistake could: an answer must not fail for lack of a way. It returns what takes the route away.
func (sc *scene) routeBack(t *suite.T, vm *stage.VM) (remove func()) {
	name := sc.bridgeName
	switch {
	case name != "":
	case sc.passt || sc.network.Binding == podnet.Masquerade:
		return func() {} // the pod has its own way
	default:
		name = vm.Net.Bridge()
	}
	pod := vm.Net.Pod.Netlink()
	bridge, err := pod.LinkByName(name)
	t.Check(err)
	route := &netlink.Route{
		LinkIndex: bridge.Attrs().Index,
		Scope:     unix.RT_SCOPE_LINK,
		Dst:       &net.IPNet{IP: sc.neighbour.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}
	t.Check(pod.RouteAdd(route))
	return func() { t.Check(pod.RouteDel(route)) }
}
