package attacks

import (
	"bytes"
	"context"
	"net"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// neighbourPatience is how long a neighbour waits that is not answered, far longer than an answer takes.
const neighbourPatience = 500 * time.Millisecond

// impostorRequests is how often the guest asks while somebody else claims the address.
const impostorRequests = 10

// neighbourAsks: a neighbour asks for the token over IPv4 and IPv6, by looking for the address and by sending straight
// to each MAC that the pod has, also where the pod has a route back to it.
func neighbourAsks(s *scene) {
	if s.Binding() == podnet.Bridge {
		s.routeToNeighbour()
	}
	for way, mac := range s.targets() {
		for protocol, ask := range map[string]func(context.Context, net.HardwareAddr) (podnet.Reply, error){
			"IPv4": s.Net.NeighbourAsks, "IPv6": s.Net.NeighbourAsksIPv6,
		} {
			ctx, cancel := context.WithTimeout(s.t.Context(), neighbourPatience)
			reply, err := ask(ctx, mac)
			cancel()
			s.t.Check(err)
			if reply.Outcome != podnet.NoAnswer {
				s.answered("a neighbour that asks by %s and %s: %v", protocol, way, reply)
			}
		}
		s.serve()
	}
	s.neighbourSends(s.forbid(s.questions(s.neighbour, nil))...)
	s.serve()
}

// routeToNeighbour lets the pod of bridge binding reach the pod network by its bridge, as a CNI plugin or an
// operator's mistake could.
func (s *scene) routeToNeighbour() {
	bridge, err := s.Net.Pod.Netlink().LinkByName(bridgeDevice)
	s.t.Check(err)
	s.t.Check(s.Net.Pod.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: bridge.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: podnet.NeighbourAddr.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
}

// targets are the ways to the endpoint that a neighbour, or a guest, can try. No MAC stands for ARP.
func (s *scene) targets() map[string]net.HardwareAddr {
	port := "eth0"
	if s.Binding() == podnet.Bridge {
		port = "eth0-nic"
	}
	return map[string]net.HardwareAddr{
		"its address":        nil,
		"the endpoint's MAC": podnet.EndpointMAC,
		"its port's MAC":     podnet.PortMAC,
		"the bridge's MAC":   s.mac(s.Net.Pod, bridgeDevice),
		"the uplink's MAC":   s.mac(s.Net.Pod, port),
		"the guest's MAC":    s.guest.MAC,
		"broadcast":          packet.Broadcast,
	}
}

// questions are frames in which somebody asks for the address, or sends to it, by all ways: each as change leaves it.
func (s *scene) questions(from packet.Party, change func([]byte) [][]byte) (frames [][]byte) {
	port := uint16(20000) // below those that a kernel chooses from
	add := func(frame []byte) {
		if change == nil {
			frames = append(frames, frame)
		} else {
			frames = append(frames, change(frame)...)
		}
	}
	wanted := packet.Party{Addr: podnet.MetadataAddr}
	for _, mac := range s.targets() {
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
func (s *scene) claims(from, to packet.Party, change func([]byte) [][]byte) (frames [][]byte) {
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
		packet.UDP(s.endpoint, to, 80, 20003, []byte("an answer")),
		packet.UDP(s.endpoint, packet.Party{MAC: packet.Broadcast, Addr: to.Addr}, 80, 20004, []byte("an answer")),
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
func neighbourImpersonates(s *scene) {
	impostor, err := s.Net.Impersonate(s.t.Context())
	s.t.Check(err)
	s.serveAnew()
	s.t.Check(impostor.Stop())
	if n := impostor.Requests(); n > 0 {
		s.answered("%d of the guest's requests came to the impostor", n)
	}
}

// serveAnew has the guest ask by its default route and on-link, each time as if it had never asked before.
func (s *scene) serveAnew() {
	for range impostorRequests {
		s.Shell("ip neigh flush dev eth0")
		s.serve()
	}
	s.with("ip route add 169.254.169.254 dev eth0", "ip route del 169.254.169.254 dev eth0", func() {
		for range impostorRequests {
			s.Shell("ip neigh flush dev eth0")
			s.serve()
		}
	})
}

// neighbourSpoofs: a neighbour sends with the endpoint's MAC, or its address, to the guest and to everybody.
func neighbourSpoofs(s *scene) {
	for range impostorRequests {
		s.neighbourSends(s.forbid(s.claims(s.neighbour, s.guest, nil))...)
		s.serve()
	}
}

// neighbourProxiesARP: the node answers ARP for all that it has a route to, as it does for Calico's pods.
func neighbourProxiesARP(s *scene) {
	undo, err := s.Net.ProxyARP()
	s.t.Check(err)
	if s.Binding() == podnet.Bridge {
		// It does, for what the guest may ask it for.
		if replies := s.Shell("ip addr add 203.0.113.2/24 dev eth0; arping -f -c 5 -w 5 -I eth0 -s 203.0.113.2 203.0.113.1; ip addr del 203.0.113.2/24 dev eth0"); !strings.Contains(replies, "Received 1") {
			s.t.Errorf("there is no proxy ARP: %s", replies)
		}
	}
	s.serveAnew()
	s.t.Check(undo())
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
func neighbourTags(s *scene) {
	s.neighbourSends(s.forbid(s.questions(s.neighbour, inEachVLAN))...)
	s.serve()
	s.neighbourSends(s.forbid(s.claims(s.neighbour, s.guest, inEachVLAN))...)
	s.serve()
}

// neighbourFragments: questions and claims of a neighbour in fragments.
func neighbourFragments(s *scene) {
	s.neighbourSends(s.forbid(s.questions(s.neighbour, fragmented))...)
	s.serve()
	s.neighbourSends(s.forbid(s.claims(s.neighbour, s.guest, fragmented))...)
	s.serve()
}
