package guests

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// neighbourPatience is how long the neighbour waits for an answer. One that comes, comes within some milliseconds, and
// a late one is seen on the uplink.
const neighbourPatience = 120 * time.Millisecond

// neighbourAsks has the neighbour ask on an uplink, at both addresses: by ARP or neighbour discovery, or by sending to a
// MAC. It returns what came back over IPv4 and over IPv6.
func neighbourAsks(t *testing.T, pod *podnet.Pod, uplink string, mac net.HardwareAddr) map[string]podnet.Reply {
	return map[string]podnet.Reply{
		"IPv4": askAs(t, func(ctx context.Context) (podnet.Reply, error) { return pod.NeighbourAsksBy(ctx, uplink, mac) }),
		"IPv6": askAs(t, func(ctx context.Context) (podnet.Reply, error) { return pod.NeighbourAsksIPv6By(ctx, uplink, mac) }),
	}
}

func askAs(t *testing.T, ask func(context.Context) (podnet.Reply, error)) podnet.Reply {
	ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
	defer cancel()
	reply, err := ask(ctx)
	check(t, err)
	return reply
}

// routeBack gives the pod, until the test ends, a route to the neighbour by a bridge, as a CNI plugin or an operator's
// mistake could: an answer must not fail for lack of a way.
func routeBack(t *testing.T, pod *podnet.Pod, bridge string, neighbour netip.Addr) {
	link, err := pod.Pod.Netlink().LinkByName(bridge)
	check(t, err)
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: neighbour.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}
	check(t, pod.Pod.Netlink().RouteAdd(route))
	t.Cleanup(func() { check(t, pod.Pod.Netlink().RouteDel(route)) })
}

// impostorRequests is how often the guest asks while somebody else claims the address.
const impostorRequests = 10

// strangerAsks: a neighbour asks for the token over IPv4 and IPv6, by looking for the address and by sending straight
// to each MAC that the pod has, also where the pod has a route back to it.
func strangerAsks(v *attackVM) {
	if v.Binding() == podnet.Bridge {
		routeBack(v.t, v.Net, bridgeDevice, podnet.NeighbourAddr)
	}
	for way, mac := range v.targets() {
		for protocol, reply := range neighbourAsks(v.t, v.Net, uplink, mac) {
			if reply.Outcome != podnet.NoAnswer {
				v.answered("a neighbour that asks by %s and %s: %v", protocol, way, reply)
			}
		}
		v.serve(1)
	}
	v.neighbourSends(v.forbid(v.questions(v.neighbour, nil))...)
	v.serve(1)
}

// targets are the ways to the endpoint that a neighbour, or a guest, can try. No MAC stands for ARP.
func (v *attackVM) targets() map[string]net.HardwareAddr {
	port := "eth0"
	if v.Binding() == podnet.Bridge {
		port = "eth0-nic"
	}
	return map[string]net.HardwareAddr{
		"its address":        nil,
		"the endpoint's MAC": podnet.EndpointMAC,
		"its port's MAC":     podnet.PortMAC,
		"the bridge's MAC":   v.mac(v.Net.Pod, bridgeDevice),
		"the uplink's MAC":   v.mac(v.Net.Pod, port),
		"the guest's MAC":    v.guest.MAC,
		"broadcast":          packet.Broadcast,
	}
}

// questions are frames in which somebody asks for the address, or sends to it, by all ways: each as change leaves it.
func (v *attackVM) questions(from packet.Party, change func([]byte) [][]byte) (frames [][]byte) {
	port := uint16(20000) // below those that a kernel chooses from
	add := func(frame []byte) {
		if change == nil {
			frames = append(frames, frame)
		} else {
			frames = append(frames, change(frame)...)
		}
	}
	wanted := packet.Party{Addr: podnet.MetadataAddr}
	for _, mac := range v.targets() {
		if mac == nil {
			continue
		}
		to := packet.Party{MAC: mac, Addr: podnet.MetadataAddr}
		port++ // so that no two have the same payload
		add(packet.ARP(packet.ARPRequest, from.MAC, mac, from, wanted))
		add(packet.SYN(from, to, port, 80))
		add(packet.UDP(from, to, port, 80, []byte("a question")))
	}
	return frames
}

// claims are frames in which somebody says that the address is its own, or speaks with it, or with our MAC.
func (v *attackVM) claims(from, to packet.Party, change func([]byte) [][]byte) (frames [][]byte) {
	liar := packet.Party{MAC: from.MAC, Addr: podnet.MetadataAddr}
	ours := packet.Party{MAC: podnet.EndpointMAC, Addr: from.Addr}
	for _, frame := range [][]byte{
		packet.Gratuitous(packet.ARPRequest, liar, packet.Broadcast),
		packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast),
		packet.Gratuitous(packet.ARPReply, liar, to.MAC),
		packet.ARP(packet.ARPReply, from.MAC, to.MAC, liar, to),
		packet.ARP(packet.ARPReply, podnet.EndpointMAC, to.MAC, liar, to),
		packet.ARP(packet.ARPReply, podnet.PortMAC, to.MAC, liar, to),
		packet.ARP(packet.ARPRequest, from.MAC, packet.Broadcast, packet.Party{MAC: podnet.EndpointMAC, Addr: from.Addr}, to),
		packet.UDP(liar, to, 80, 20000, []byte("an answer")),
		packet.SYN(liar, to, 80, 20000),
		packet.UDP(ours, to, 80, 20001, []byte("an answer")),
		packet.UDP(packet.Party{MAC: podnet.PortMAC, Addr: from.Addr}, to, 80, 20002, []byte("an answer")),
		packet.UDP(v.endpoint, to, 80, 20003, []byte("an answer")),
		packet.UDP(v.endpoint, packet.Party{MAC: packet.Broadcast, Addr: to.Addr}, 80, 20004, []byte("an answer")),
	} {
		if change == nil {
			frames = append(frames, frame)
		} else {
			frames = append(frames, change(frame)...)
		}
	}
	return frames
}

// neighbourImpersonates: a neighbour, or the gateway itself, has the address, answers ARP for it and HTTP, and tells
// everybody by gratuitous ARP fifty times a second.
func neighbourImpersonates(v *attackVM) {
	impostor, err := v.Net.Impersonate(v.t.Context())
	check(v.t, err)
	v.serveAnew()
	check(v.t, impostor.Stop())
	if n := impostor.Requests(); n > 0 {
		v.answered("%d of the guest's requests came to the impostor", n)
	}
}

// serveAnew has the guest ask by its default route and on-link, each time as if it had never asked before.
func (v *attackVM) serveAnew() {
	ask := func() {
		for range impostorRequests {
			v.Shell("ip neigh flush dev eth0")
			v.serve(1)
		}
	}
	ask()
	v.with("ip route add 169.254.169.254 dev eth0", "ip route del 169.254.169.254 dev eth0", ask)
}

// neighbourSpoofs: a neighbour sends with the endpoint's MAC, or its address, to the guest and to everybody.
func neighbourSpoofs(v *attackVM) {
	for range impostorRequests {
		v.neighbourSends(v.forbid(v.claims(v.neighbour, v.guest, nil))...)
		v.serve(1)
	}
}

// neighbourProxiesARP: the node answers ARP for all that it has a route to, as it does for Calico's pods.
func neighbourProxiesARP(v *attackVM) {
	undo, err := v.Net.ProxyARP()
	check(v.t, err)
	if v.Binding() == podnet.Bridge {
		// It does, for what the guest may ask it for.
		if replies := v.Shell("ip addr add 203.0.113.2/24 dev eth0; arping -f -c 5 -w 5 -I eth0 -s 203.0.113.2 203.0.113.1; ip addr del 203.0.113.2/24 dev eth0"); !strings.Contains(replies, "Received 1") {
			v.fail("served", "there is no proxy ARP: %s", replies)
		}
	}
	v.serveAnew()
	check(v.t, undo())
}

// tags are ways in which a frame can be in a VLAN, or pretend to be.
var tags = [][]packet.Tag{
	{packet.CustomerTag},
	{packet.ProviderTag},
	{packet.ProviderTag, packet.CustomerTag},
	{packet.CustomerTag, packet.CustomerTag},
	{packet.PriorityTag},
	{packet.PriorityTag, packet.CustomerTag},
	{packet.PriorityTag, packet.PriorityTag},
	{packet.ProviderTag, packet.PriorityTag},
}

// inEachVLAN leaves out what names our MAC to others: a VLAN's hosts may be told what they like, and nobody looks for
// it there.
func inEachVLAN(frame []byte) (tagged [][]byte) {
	if bytes.Contains(packet.Payload(frame), podnet.EndpointMAC) {
		return nil
	}
	for _, t := range tags {
		tagged = append(tagged, packet.Tagged(frame, t...))
	}
	return tagged
}

// fragmented cuts an IPv4 frame into two, and gives the second also alone: a question can hide from whoever looks
// at the first.
func fragmented(frame []byte) [][]byte {
	const arp = 0x06 // the second byte of its EtherType
	if frame[13] == arp {
		return nil
	}
	return packet.Fragments(frame, 8)
}

// neighbourTags: questions and claims of a neighbour behind VLAN tags.
func neighbourTags(v *attackVM) {
	v.neighbourSends(v.forbid(v.questions(v.neighbour, inEachVLAN))...)
	v.serve(1)
	v.neighbourSends(v.forbid(v.claims(v.neighbour, v.guest, inEachVLAN))...)
	v.serve(1)
}

// neighbourFragments: questions and claims of a neighbour in fragments.
func neighbourFragments(v *attackVM) {
	v.neighbourSends(v.forbid(v.questions(v.neighbour, fragmented))...)
	v.serve(1)
	v.neighbourSends(v.forbid(v.claims(v.neighbour, v.guest, fragmented))...)
	v.serve(1)
}
