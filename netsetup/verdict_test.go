package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// Each frame meets the rule that is there for it. Several rules forbid most of
// what a hostile frame wants, so that it does no harm without one of them; their
// counters tell that none is missing.
func TestEachFrameMeetsItsRule(t *testing.T) {
	requireIPv6(t)
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	l := newLink(t, pod)

	const (
		entering = "bridge prerouting"
		leaving  = "bridge postrouting"
		intoPod  = "ip6 prerouting"
	)
	tcp, icmp := make([]byte, 20), byte(unix.IPPROTO_ICMPV6)
	syn := func(from, to net.HardwareAddr, source netip.Addr) []byte {
		return packet.IPv6(from, to, source, ours, unix.IPPROTO_TCP, tcp)
	}
	solicit := func(from, to net.HardwareAddr, source netip.Addr) []byte {
		return packet.NeighbourMessage(solicitation, from, to, source, group, ours, from)
	}
	advertise := func(from, to net.HardwareAddr, source, destination, target netip.Addr) []byte {
		return packet.NeighbourMessage(advertisement, from, to, source, destination, target, from)
	}
	strangerMAC, guestMAC, strange, guest := l.neighbourMAC, l.guestMAC, l.neighbourAddr, l.guestAddr

	for _, c := range []struct {
		name  string
		from  port
		frame []byte
		chain string
		rule  string
	}{
		// The guest asks.
		{"guest asks", l.guest, syn(guestMAC, wiring.DeviceMAC, guest), entering, "a guest asks"},
		{"guest asks by its gateway's MAC", l.guest, syn(guestMAC, strangerMAC, guest), leaving, "a guest asks"},
		{"guest asks by broadcast", l.guest, syn(guestMAC, broadcast, guest), intoPod, "a guest asks"},
		{"guest looks for the endpoint", l.guest, solicit(guestMAC, groupMAC, guest), entering, "a guest looks for the endpoint"},
		{"guest looks for it by its gateway's MAC", l.guest, solicit(guestMAC, strangerMAC, guest), leaving, "a guest looks for the endpoint"},
		{"the endpoint hears who looks for it", l.guest, solicit(guestMAC, groupMAC, guest), intoPod, "a guest looks for the endpoint"},
		{"the endpoint tells where it is", l.guest, solicit(guestMAC, groupMAC, guest), entering, "the endpoint tells where it is"},
		{"guest tells where it is", l.guest, advertise(guestMAC, strangerMAC, guest, ours, guest), entering, "a guest tells the endpoint where it is"},
		{"guest tells where it is, across the bridge", l.guest, advertise(guestMAC, wiring.DeviceMAC, guest, ours, guest), leaving, "a guest tells the endpoint where it is"},
		{"the endpoint hears where the guest is", l.guest, advertise(guestMAC, wiring.DeviceMAC, guest, ours, guest), intoPod, "a guest tells the endpoint where it is"},
		{"the questions bypass NAT", l.guest, syn(guestMAC, wiring.DeviceMAC, guest), intoPod, "questions bypass NAT"},

		// A hostile guest asks in other ways.
		{"guest asks from a global address", l.guest, syn(guestMAC, wiring.DeviceMAC, podnet.PodIPv6Addr), entering, "nobody else asks over IPv6"},
		{"guest asks from multicast", l.guest, syn(guestMAC, wiring.DeviceMAC, allNodes), entering, "nobody else asks over IPv6"},
		{"guest asks behind options", l.guest, behindOptions(syn(guestMAC, wiring.DeviceMAC, guest)), entering, "nobody else asks over IPv6"},
		{"guest asks in fragments, the first", l.guest, fragment(syn(guestMAC, wiring.DeviceMAC, guest), 0), entering, "nobody else asks over IPv6"},
		{"guest asks in fragments, a later one", l.guest, fragment(syn(guestMAC, wiring.DeviceMAC, guest), 8), entering, "nobody else asks over IPv6"},
		{"guest asks over UDP", l.guest, packet.IPv6(guestMAC, wiring.DeviceMAC, guest, ours, unix.IPPROTO_UDP, tcp), entering, "nobody else asks over IPv6"},
		{"guest asks for an echo", l.guest, packet.ICMPv6(guestMAC, wiring.DeviceMAC, guest, ours, []byte{128, 0, 0, 0, 0, 0, 0, 0}), entering, "nobody else asks over IPv6"},
		{"guest looks for it by duplicate address detection", l.guest, solicit(guestMAC, groupMAC, netip.IPv6Unspecified()), entering, "nobody else solicits its IPv6 address"},
		{"guest looks for it behind options", l.guest, behindOptions(solicit(guestMAC, groupMAC, guest)), entering, "nobody else solicits its IPv6 address"},
		{"guest has the address", l.guest, packet.IPv6(guestMAC, strangerMAC, ours, strange, unix.IPPROTO_TCP, tcp), entering, "nobody else has its IPv6 address"},
		{"guest advertises the address", l.guest, advertise(guestMAC, strangerMAC, guest, strange, ours), entering, "nobody else advertises its IPv6 address"},
		{"guest advertises the address to the endpoint", l.guest, advertise(guestMAC, wiring.DeviceMAC, guest, ours, ours), entering, "nobody else advertises its IPv6 address"},
		{"guest speaks as router to the endpoint", l.guest, packet.ICMPv6(guestMAC, wiring.DeviceMAC, guest, allNodes, advertisedRouter), entering, "the endpoint gets nothing else"},
		{"guest speaks as router to all", l.guest, packet.ICMPv6(guestMAC, allNodesMAC, guest, allNodes, advertisedRouter), leaving, "the endpoint gets nothing else"},
		{"guest sends a fragment over IPv4", l.guest, udp(guestMAC, strangerMAC, podnet.PodAddr.AsSlice(), podnet.MetadataAddr.AsSlice(), 0x2000), entering, "a question comes in one piece"},
		{"guest sends a later fragment over IPv4", l.guest, udp(guestMAC, strangerMAC, podnet.PodAddr.AsSlice(), podnet.MetadataAddr.AsSlice(), 0x00b9), entering, "a question comes in one piece"},
		{"guest asks with options", l.guest, ipv4WithOptions(guestMAC, strangerMAC, unix.IPPROTO_UDP, podnet.PodAddr.AsSlice(), podnet.MetadataAddr.AsSlice(), 0, make([]byte, 4), tcp), entering, "a question has no options"},

		// The neighbour asks, claims and spoofs.
		{"neighbour asks", l.neighbour, syn(strangerMAC, guestMAC, strange), entering, "nobody else asks over IPv6"},
		{"neighbour asks by the endpoint's MAC", l.neighbour, syn(strangerMAC, wiring.DeviceMAC, strange), entering, "nobody else asks over IPv6"},
		{"neighbour looks for the endpoint", l.neighbour, solicit(strangerMAC, groupMAC, strange), entering, "nobody else solicits its IPv6 address"},
		{"neighbour looks for it behind a priority tag", l.neighbour, tag(solicit(strangerMAC, groupMAC, strange), unix.ETH_P_8021Q, 0), entering, "nobody else solicits its IPv6 address"},
		{"neighbour has the address", l.neighbour, packet.IPv6(strangerMAC, guestMAC, ours, guest, unix.IPPROTO_TCP, tcp), entering, "nobody else has its IPv6 address"},
		{"neighbour speaks as router by the address", l.neighbour, packet.ICMPv6(strangerMAC, allNodesMAC, ours, allNodes, advertisedRouter), entering, "nobody else has its IPv6 address"},
		{"neighbour advertises the address", l.neighbour, advertise(strangerMAC, guestMAC, strange, guest, ours), entering, "nobody else advertises its IPv6 address"},
		{"neighbour advertises the address to all", l.neighbour, advertise(strangerMAC, allNodesMAC, strange, allNodes, ours), entering, "nobody else advertises its IPv6 address"},
		{"neighbour advertises it behind options", l.neighbour, behindOptions(advertise(strangerMAC, guestMAC, strange, guest, ours)), entering, "nobody else advertises its IPv6 address"},
		{"neighbour advertises it in a fragment", l.neighbour, fragment(advertise(strangerMAC, guestMAC, strange, guest, ours), 0), entering, "nobody else advertises its IPv6 address"},

		// VLANs are other networks, but for our MACs.
		{"neighbour in a VLAN", l.neighbour, tag(syn(strangerMAC, guestMAC, strange), unix.ETH_P_8021Q, 7), entering, "a VLAN is another network"},
		{"neighbour in a provider's VLAN", l.neighbour, tag(syn(strangerMAC, guestMAC, strange), unix.ETH_P_8021AD, 7), entering, "a VLAN is another network"},
		{"guest in a VLAN", l.guest, tag(syn(guestMAC, strangerMAC, guest), unix.ETH_P_8021Q, 7), leaving, "a VLAN is another network"},
		{"guest in a provider's VLAN", l.guest, tag(syn(guestMAC, strangerMAC, guest), unix.ETH_P_8021AD, 7), leaving, "a VLAN is another network"},
		{"guest to the endpoint's MAC in a VLAN", l.guest, tag(syn(guestMAC, wiring.DeviceMAC, guest), unix.ETH_P_8021Q, 7), entering, "the endpoint is in no VLAN"},
		{"guest to the endpoint's MAC in a provider's VLAN", l.guest, tag(syn(guestMAC, wiring.DeviceMAC, guest), unix.ETH_P_8021AD, 7), entering, "the endpoint is in no VLAN"},
		{"guest to all in a VLAN", l.guest, tag(solicit(guestMAC, groupMAC, guest), unix.ETH_P_8021Q, 7), leaving, "the endpoint is in no VLAN"},
		{"guest to all in a provider's VLAN", l.guest, tag(solicit(guestMAC, groupMAC, guest), unix.ETH_P_8021AD, 7), leaving, "the endpoint is in no VLAN"},
		{"guest hides a tag behind a priority tag", l.guest, tag(tag(syn(guestMAC, strangerMAC, guest), unix.ETH_P_8021Q, 0), unix.ETH_P_8021Q, 0), entering, "no tag behind a priority tag"},
		{"guest hides a provider's tag behind a priority tag", l.guest, tag(tag(syn(guestMAC, strangerMAC, guest), unix.ETH_P_8021AD, 7), unix.ETH_P_8021Q, 0), entering, "no tag behind a priority tag"},

		{"neighbour with the endpoint's MAC in a VLAN", l.neighbour, tag(syn(wiring.DeviceMAC, guestMAC, strange), unix.ETH_P_8021Q, 7), entering, "nobody else has its MAC"},
		{"neighbour with its port's MAC in a VLAN", l.neighbour, tag(syn(wiring.PortMAC, guestMAC, strange), unix.ETH_P_8021Q, 7), entering, "nobody else has its port's MAC"},

		// The pod itself, by its bridge, where no rule has looked before.
		{"pod asks by the bridge", l.bridge, syn(l.bridgeMAC, guestMAC, guest), leaving, "nobody else asks over IPv6"},
		{"pod looks for the endpoint by the bridge", l.bridge, packet.NeighbourMessage(solicitation, l.bridgeMAC, guestMAC, strange, group, ours, l.bridgeMAC), leaving, "nobody else solicits its IPv6 address"},
		{"pod has the address by the bridge", l.bridge, packet.IPv6(l.bridgeMAC, guestMAC, ours, guest, unix.IPPROTO_TCP, tcp), leaving, "nobody else has its IPv6 address"},
		{"pod advertises the address by the bridge", l.bridge, advertise(l.bridgeMAC, guestMAC, strange, guest, ours), leaving, "nobody else advertises its IPv6 address"},

		// What a device with IPv6 says by itself, past the rules of its own family.
		{"the endpoint answers", l.device, packet.IPv6(wiring.DeviceMAC, guestMAC, ours, guest, unix.IPPROTO_TCP, tcp), entering, "the endpoint answers"},
		{"the endpoint looks for the guest", l.device, packet.NeighbourMessage(solicitation, wiring.DeviceMAC, guestMAC, ours, guest, guest, wiring.DeviceMAC), entering, "the endpoint looks for a guest"},
		{"the endpoint solicits routers", l.device, packet.ICMPv6(wiring.DeviceMAC, allNodesMAC, ours, allNodes, []byte{133, 0, 0, 0, 0, 0, 0, 0}), entering, "the endpoint says nothing else over IPv6"},
		{"the endpoint reports its groups", l.device, packet.IPv6(wiring.DeviceMAC, allNodesMAC, ours, allNodes, 0, []byte{icmp, 0, 5, 2, 0, 0, 1, 0}), entering, "the endpoint says nothing else over IPv6"},

		// What reaches the device, past the rules of the bridge.
		{"a router advertises itself to the endpoint", l.port, packet.ICMPv6(guestMAC, allNodesMAC, guest, allNodes, advertisedRouter), intoPod, "the endpoint hears nothing else"},
		{"a question to another address of the pod", l.port, packet.IPv6(guestMAC, wiring.DeviceMAC, guest, podnet.PodIPv6Addr, unix.IPPROTO_TCP, tcp), intoPod, "the endpoint hears nothing else"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := counters(t, pod)[c.chain+", "+c.rule]
			l.send(t, c.from, c.frame)
			if after := counters(t, pod)[c.chain+", "+c.rule]; after <= before {
				t.Errorf("%s: the rule %q counted %d, before %d", c.chain, c.rule, after, before)
			}
		})
	}
	mustServe(t, pod, guestAddress(podnet.Bridge))
}

// What the pod does by its own stack meets the rules of its own family.
func TestThePodsOwnPacketsMeetTheirRules(t *testing.T) {
	requireIPv6(t)
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Masquerade, Ports: []uint16{22}})
	eth0, device := link(t, pod, "eth0").Attrs().Index, link(t, pod, wiring.Device).Attrs().Index
	guest, err := pod.Guest.LinkLocal("eth0")
	must(t, err)
	stranger := mac(t, pod.Neighbour, podnet.NeighbourInterface)
	own := mac(t, pod.Pod, "eth0")
	by := func(index int, frame []byte) func() error {
		return func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			packet := frame[14:]
			err = unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40]), ZoneId: uint32(index)})
			if err == unix.EPERM { // the rule has dropped it
				return nil
			}
			return err
		}
	}
	const noNextHeader = 59
	empty := func(source, destination netip.Addr) []byte {
		return packet.IPv6(own, stranger, source, destination, noNextHeader, nil)
	}
	for _, c := range []struct {
		name string
		send func() error
		rule string
	}{
		{"a question by eth0", by(eth0, empty(podnet.PodIPv6Addr, ours)), "ip6 output, questions stay in the pod"},
		{"a question by eth0, without NAT", by(eth0, empty(podnet.PodIPv6Addr, ours)), "ip6 output, questions bypass NAT"},
		{"an answer by eth0", by(eth0, empty(ours, podnet.NeighbourIPv6Addr)), "ip6 output, answers leave by the endpoint"},
		{"something else by the endpoint", by(device, empty(ours, guest)), "ip6 output, the endpoint says nothing else over IPv6"},
		{"a solicitation by the endpoint", by(device, packet.NeighbourMessage(solicitation, own, stranger, ours, guest, guest, own)), "ip6 output, the endpoint looks for a guest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := counters(t, pod)[c.rule]
			must(t, pod.Pod.Do(c.send))
			if after := counters(t, pod)[c.rule]; after <= before {
				t.Errorf("the rule %q counted %d, before %d", c.rule, after, before)
			}
		})
	}

	uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
	must(t, err)
	for _, source := range []netip.Addr{podnet.NeighbourIPv6Addr, netip.MustParseAddr("fe80::1")} {
		frame := packet.IPv6(stranger, own, source, ours, unix.IPPROTO_TCP, make([]byte, 20))
		must(t, pod.Neighbour.SendFrame(podnet.NeighbourInterface, frame))
	}
	mustServe(t, pod, guestAddress(podnet.Masquerade))
	pingGateway(t, pod)
	frames, err := uplink.Stop()
	must(t, err)
	for _, frame := range frames {
		if frame.ConcernsMetadata() && !frame.Outgoing {
			t.Errorf("on the uplink: %v", frame)
		}
	}

	// These have counted since the endpoint was made and the guest served.
	counted := counters(t, pod)
	for _, rule := range []string{
		"ip6 prerouting, only the endpoint and the pod itself ask",
		"ip6 prerouting, answers bypass NAT",
		"ip6 output, answers bypass NAT",
		"ip6 output, the endpoint answers",
		"ip6 output, the endpoint tells where it is",
	} {
		if counted[rule] == 0 {
			t.Errorf("the rule %q has counted nothing", rule)
		}
	}
}

// counters returns how many packets each of our rules has matched, by family,
// chain and purpose.
func counters(t *testing.T, pod *podnet.Pod) map[string]uint64 {
	t.Helper()
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyBridge: "bridge", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyARP: "arp",
	}
	nft, err := pod.Pod.Nftables()
	must(t, err)
	chains, err := nft.ListChains()
	must(t, err)
	all := map[string]uint64{}
	for _, chain := range chains {
		if chain.Table.Name != "imds" {
			continue
		}
		rules, err := nft.GetRules(chain.Table, chain)
		must(t, err)
		for _, rule := range rules {
			purpose, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
			for _, e := range rule.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					all[families[chain.Table.Family]+" "+chain.Name+", "+purpose] += c.Packets
				}
			}
		}
	}
	return all
}

// port is where a frame is put on the guest's link.
type port struct {
	in   *podnet.Namespace
	name string
}

// segment is the link between a guest and its neighbour, with the ways to put a
// frame on it and to know that it has been judged.
type segment struct {
	guest, neighbour, bridge, device, port port
	guestMAC, neighbourMAC, bridgeMAC      net.HardwareAddr
	guestAddr, neighbourAddr               netip.Addr
	pod                                    *podnet.Pod
	atGuest, atNeighbour                   *podnet.Recording
	sent                                   byte
}

func newLink(t *testing.T, pod *podnet.Pod) *segment {
	t.Helper()
	l := &segment{
		pod:       pod,
		guest:     port{pod.Guest, "eth0"},
		neighbour: port{pod.Neighbour, podnet.NeighbourInterface},
		bridge:    port{pod.Pod, "k6t-eth0"},
		device:    port{pod.Pod, wiring.Device},
		port:      port{pod.Pod, wiring.Port},
	}
	l.guestMAC, l.neighbourMAC, l.bridgeMAC = mac(t, pod.Guest, "eth0"), mac(t, pod.Neighbour, podnet.NeighbourInterface), mac(t, pod.Pod, "k6t-eth0")
	var err error
	l.guestAddr, err = pod.Guest.LinkLocal("eth0")
	must(t, err)
	l.neighbourAddr, err = pod.Neighbour.LinkLocal(podnet.NeighbourInterface)
	must(t, err)
	for _, r := range []struct {
		at *(*podnet.Recording)
		of port
	}{{&l.atGuest, l.guest}, {&l.atNeighbour, l.neighbour}} {
		*r.at, err = podnet.Capture(r.of.in, r.of.name)
		must(t, err)
		t.Cleanup(func() { (*r.at).Stop() })
	}
	return l
}

// send puts a frame on the link and returns when it has been judged: a later frame
// has come to the other side, and one of the guest's questions to the endpoint.
func (l *segment) send(t *testing.T, from port, frame []byte) {
	t.Helper()
	must(t, from.in.SendFrame(from.name, frame))
	l.sent++
	last := func(from, to net.HardwareAddr) []byte {
		return packet.IPv6(from, to, l.guestAddr, l.neighbourAddr, 59, bytes.Repeat([]byte{l.sent}, 40))
	}
	there, back := last(l.guestMAC, l.neighbourMAC), last(l.neighbourMAC, l.guestMAC)
	must(t, l.guest.in.SendFrame(l.guest.name, there))
	must(t, l.neighbour.in.SendFrame(l.neighbour.name, back))
	must(t, l.atNeighbour.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, there) }))
	must(t, l.atGuest.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, back) }))
	mustServeIPv6(t, l.pod, "eth0")
}

// The endpoint's IPv6 address as frames have it, and the multicast groups of its
// solicitations and of all nodes, with their MACs (RFC 4291, RFC 2464).
var (
	ours        = wiring.AddressIPv6.Addr()
	group       = netip.MustParseAddr("ff02::1:fffe:a9fe")
	groupMAC    = net.HardwareAddr{0x33, 0x33, 0xff, 0xfe, 0xa9, 0xfe}
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// Messages of neighbour discovery (RFC 4861).
const (
	solicitation  = 135
	advertisement = 136
)

// advertisedRouter is a router advertisement with the prefix 2001:db8:bad::/64,
// from which addresses may be made.
var advertisedRouter = slices.Concat(
	[]byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0},
	[]byte{3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0},
	netip.MustParseAddr("2001:db8:bad::").AsSlice(),
)

// behindOptions puts a hop-by-hop options header behind the IPv6 header of a frame
// (RFC 8200 section 4.3).
func behindOptions(frame []byte) []byte {
	return extended(frame, unix.IPPROTO_HOPOPTS, []byte{0, 0, 1, 4, 0, 0, 0, 0})
}

// fragment makes a frame's IPv6 packet a fragment at an offset in bytes, after
// which more follow (RFC 8200 section 4.5).
func fragment(frame []byte, offset uint16) []byte {
	return extended(frame, unix.IPPROTO_FRAGMENT, []byte{0, 0, byte(offset >> 8), byte(offset) | 1, 0, 0, 0, 7})
}

// extended inserts an extension header, whose first byte it sets.
func extended(frame []byte, kind byte, header []byte) []byte {
	const length, next, end = 14 + 4, 14 + 6, 14 + 40
	made := slices.Concat(frame[:end], header, frame[end:])
	made[end] = frame[next]
	made[next] = kind
	binary.BigEndian.PutUint16(made[length:], uint16(len(made)-end))
	return made
}

// tag puts a VLAN tag of a kind in front of what a frame holds.
func tag(frame []byte, kind uint16, id byte) []byte {
	return slices.Concat(frame[:12], binary.BigEndian.AppendUint16(nil, kind), []byte{0, id}, frame[12:])
}
