package attacks

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// guestTags: questions and claims of the guest behind VLAN tags. A VLAN is another network, in which the guest may
// say what it likes; a frame with a priority alone is in none.
func guestTags(s *scene) {
	s.guestSends(s.forbid(s.questions(s.guest, func(frame []byte) (tagged [][]byte) {
		for _, t := range tags {
			if !slices.Equal(t, []packet.Tag{packet.PriorityTag}) {
				tagged = append(tagged, packet.Tagged(frame, t...))
			}
		}
		return tagged
	}))...)
	s.serve()
	s.guestSends(s.forbid(s.claims(s.guest, s.neighbour, inEachVLAN))...)
	s.serve()
}

// guestFragments: questions and claims of the guest in fragments.
func guestFragments(s *scene) {
	s.guestSends(s.forbid(s.questions(s.guest, fragmented))...)
	s.serve()
	s.guestSends(s.forbid(s.claims(s.guest, s.neighbour, fragmented))...)
	s.serve()
}

// guestTakesOtherWays: an on-link route, as zeroconf makes it, and a permanent neighbour entry, right or wrong.
// Whatever the guest believes, it is served. A request that lasts for one hop is enough: no router is on its way.
func guestTakesOtherWays(s *scene) {
	if got := s.get(hand.Get{HopLimit: 1}); got.Status != http.StatusOK {
		s.t.Errorf("a request with a hop limit of 1 got %s%d", got.Failure, got.Status)
	}
	s.with("ip route add 169.254.0.0/16 dev eth0", "ip route del 169.254.0.0/16 dev eth0", func() {
		s.serve()
		for way, mac := range s.targets() {
			if mac == nil || way == "broadcast" || way == "the guest's MAC" {
				continue // the guest's kernel sends no such frame
			}
			s.with("arp -i eth0 -s 169.254.169.254 "+mac.String(), "arp -i eth0 -d 169.254.169.254", s.serve)
		}
	})
}

// guestTakesGatewayMAC: a guest that speaks with its gateway's MAC. Its own network may break, and nobody else is
// answered in its place.
func guestTakesGatewayMAC(s *scene) {
	s.guestMACs = append(s.guestMACs, s.gateway.MAC.String())
	asGateway := packet.Party{MAC: s.gateway.MAC, Addr: s.gateway.Addr}
	asItself := packet.Party{MAC: s.gateway.MAC, Addr: s.guest.Addr}
	for _, who := range []packet.Party{asGateway, asItself} {
		s.guestSends(s.questions(who, nil)...)
		s.guestSends(s.forbid(s.claims(who, s.neighbour, nil))...)
	}
	s.withMAC(s.gateway.MAC, func() { s.get(hand.Get{Limit: time.Second}) })
	s.recover()
}

// recovery is how long the kernels may take to forget where a guest has said that it is, by their own timers.
const recovery = 30 * time.Second

// recover has the guest say where it is until it is served again: it has told the endpoint something else.
func (s *scene) recover() {
	begin := time.Now()
	for time.Since(begin) < recovery {
		s.Shell("arping -q -c 1 -w 1 -I eth0 169.254.169.254")
		if got := s.get(hand.Get{Limit: time.Second}); got.Status == http.StatusOK {
			s.t.Logf("served again after %s", milliseconds(time.Since(begin)))
			return
		}
	}
	s.t.Errorf("not served again within %s", recovery)
}

// withMAC does something while the guest has another MAC.
func (s *scene) withMAC(mac net.HardwareAddr, do func()) {
	set := func(mac net.HardwareAddr) string { return "ip link set dev eth0 address " + mac.String() }
	s.with(set(mac)+" && ip neigh flush dev eth0", set(s.guest.MAC)+" && ip neigh flush dev eth0", do)
}

// guestTakesOurMACs: a guest that speaks with the endpoint's MAC, or with its port's, is heard by nobody.
func guestTakesOurMACs(s *scene) {
	for _, mac := range []net.HardwareAddr{podnet.EndpointMAC, podnet.PortMAC} {
		who := packet.Party{MAC: mac, Addr: s.guest.Addr}
		s.guestSends(s.forbid(s.questions(who, nil))...)
		s.guestSends(s.forbid(s.claims(who, s.neighbour, nil))...)
		s.withMAC(mac, func() {
			if got := s.get(hand.Get{Limit: time.Second}); got.Failure == "" {
				s.answered("a guest with the MAC %s: %d", mac, got.Status)
			}
		})
		s.serve()
	}
}

// guestTakesOurAddress: a guest that claims the address, to the neighbours and to the endpoint, harms itself alone.
func guestTakesOurAddress(s *scene) {
	s.with("ip addr add 169.254.169.254/32 dev eth0", "ip addr del 169.254.169.254/32 dev eth0", func() {
		for _, to := range []packet.Party{s.neighbour, s.gateway, s.endpoint} {
			s.guestSends(s.forbid(s.claims(s.guest, to, nil))...)
		}
		s.Shell("arping -c 1 -w 1 -U -I eth0 169.254.169.254; ping -c 1 -W 1 -I 169.254.169.254 " + s.neighbour.Addr.String() + "; true")
		s.probe()
	})
	s.serve()
}

// guestTakesOtherAddresses: a guest asks from addresses that are not its own: those of its gateway, of its
// neighbour, of the pod, of the bridge, of somebody far away. It alone hears an answer, if there is one.
func guestTakesOtherAddresses(s *scene) {
	others := []netip.Addr{
		podnet.NeighbourAddr, podnet.PodAddr, podnet.MasqueradeGateway, podnet.MasqueradeGuestAddr,
		netip.MustParseAddr("169.254.75.10"), // the bridge's in bridge binding
		netip.MustParseAddr("8.8.8.8"),
	}
	for _, addr := range others {
		if addr == s.guest.Addr {
			continue
		}
		entry := addr.String() + "/32 dev eth0"
		s.with("ip addr add "+entry, "ip addr del "+entry, func() {
			got := s.get(hand.Get{Source: addr.String(), Limit: 2 * time.Second})
			s.t.Logf("from %s: %s%d", addr, got.Failure, got.Status)
			s.serve()
		})
	}
	// From addresses that nobody has.
	for _, addr := range []string{"127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"} {
		s.guestSends(s.questions(packet.Party{MAC: s.guest.MAC, Addr: netip.MustParseAddr(addr)}, nil)...)
	}
	s.serve()
}

// guestAdvertises: a guest that says it is everybody's IPv6 router gives the pod no address and no route.
func guestAdvertises(s *scene) {
	before := s.ipv6()
	router := packet.Party{MAC: s.guest.MAC, Addr: netip.MustParseAddr("fe80::bad")}
	s.guestSends(s.forbid([][]byte{packet.RouterAdvertisement(router, netip.MustParsePrefix("2001:db8:bad::/64"))})...)
	s.serve()
	if after := s.ipv6(); after != before {
		s.answered("IPv6 of the endpoint was\n%sand is\n%s", before, after)
	}
}

// ipv6 is what the pod has of IPv6 on our devices.
func (s *scene) ipv6() string {
	var text strings.Builder
	for _, name := range []string{endpointDevice, "veth-imds-br"} {
		link, err := s.Net.Pod.Netlink().LinkByName(name)
		s.t.Check(err)
		addresses, err := s.Net.Pod.Netlink().AddrList(link, netlink.FAMILY_V6)
		s.t.Check(err)
		routes, err := s.Net.Pod.Netlink().RouteList(link, netlink.FAMILY_V6)
		s.t.Check(err)
		fmt.Fprintf(&text, "%s: %v %v\n", name, addresses, routes)
	}
	return text.String()
}

// manyMACs is more than a bridge has entries for at once by default on some nodes.
const manyMACs = 5000

// guestFillsTheBridge: a guest sends from thousands of MACs, so that the bridge forgets what it has learned. It still
// knows where the endpoint is.
func guestFillsTheBridge(s *scene) {
	const experiment = 0x88b5 // an EtherType for local experiments (IEEE 802)
	var frames [][]byte
	for range manyMACs {
		macs := make([]byte, 12)
		rand.Read(macs) // never fails: crypto/rand
		for _, first := range []int{0, 6} {
			macs[first] = macs[first]&^0x01 | 0x02
		}
		frames = append(frames, append(macs, experiment>>8, experiment&0xff, 'm', 'a', 'n', 'y'))
	}
	s.guestSends(s.forbid(frames[:1])...)
	s.guestSends(frames[1:]...)
	s.serve()
	entries, err := s.Net.Pod.Netlink().NeighList(s.index("veth-imds-br"), unix.AF_BRIDGE)
	s.t.Check(err)
	if !slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
		return n.HardwareAddr.String() == podnet.EndpointMAC.String()
	}) {
		s.answered("the bridge no longer knows the endpoint's port: %v", entries)
	}
}

func (s *scene) index(name string) int {
	link, err := s.Net.Pod.Netlink().LinkByName(name)
	s.t.Check(err)
	return link.Attrs().Index
}

// guestLooksForItsGateway: each of the guest's questions for its gateway's MAC is answered once, by the gateway.
func guestLooksForItsGateway(s *scene) {
	const questions = 5
	tap, err := podnet.Capture(s.Net.Pod, guestTap)
	s.t.Check(err)
	s.Shell(fmt.Sprintf("arping -c %d -w %d -I eth0 %s", questions, questions+1, s.gateway.Addr))
	frames, err := tap.Stop()
	s.t.Check(err)
	replies := map[string]int{}
	for _, f := range frames {
		payload := packet.Payload(f.Data)
		const arp = 0x0806
		if f.Outgoing && etherType(f) == arp && payload[7] == packet.ARPReply && netip.AddrFrom4([4]byte(payload[14:18])) == s.gateway.Addr {
			replies[source(f)]++
		}
	}
	if len(replies) != 1 || replies[s.gateway.MAC.String()] != questions {
		s.answered("to %d questions for the gateway %s the answers were %v, want one each", questions, s.gateway.MAC, replies)
	}
}
