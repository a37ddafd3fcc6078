package guests

import (
	"context"
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

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// guestTags: questions and claims of the guest behind VLAN tags. A VLAN is another network, in which the guest may
// say what it likes; a frame with a priority alone is in none.
func guestTags(v *attackVM) {
	v.guestSends(v.forbid(v.questions(v.guest, func(frame []byte) (tagged [][]byte) {
		for _, t := range tags {
			if !slices.Equal(t, []packet.Tag{packet.PriorityTag}) {
				tagged = append(tagged, packet.Tagged(frame, t...))
			}
		}
		return tagged
	}))...)
	v.serve(1)
	v.guestSends(v.forbid(v.claims(v.guest, v.neighbour, inEachVLAN))...)
	v.serve(1)
}

// guestFragments: questions and claims of the guest in fragments.
func guestFragments(v *attackVM) {
	v.guestSends(v.forbid(v.questions(v.guest, fragmented))...)
	v.serve(1)
	v.guestSends(v.forbid(v.claims(v.guest, v.neighbour, fragmented))...)
	v.serve(1)
}

// guestTakesOtherWays: an on-link route, as zeroconf makes it, and a permanent neighbour entry, right or wrong.
// Whatever the guest believes, it is served. A request that lasts for one hop is enough: no router is on its way.
func guestTakesOtherWays(v *attackVM) {
	if got := v.Request(guestagent.Get{HopLimit: 1}); got.Status != http.StatusOK {
		v.fail("served", "a request with a hop limit of 1 got %s%d", got.Failure, got.Status)
	}
	v.with("ip route add 169.254.0.0/16 dev eth0", "ip route del 169.254.0.0/16 dev eth0", func() {
		v.serve(1)
		for way, mac := range v.targets() {
			if mac == nil || way == "broadcast" || way == "the guest's MAC" {
				continue // the guest's kernel sends no such frame
			}
			v.with("arp -i eth0 -s 169.254.169.254 "+mac.String(), "arp -i eth0 -d 169.254.169.254", func() { v.serve(1) })
		}
	})
}

// guestTakesGatewayMAC: a guest that speaks with its gateway's MAC. Its own network may break, and nobody else is
// answered in its place.
func guestTakesGatewayMAC(v *attackVM) {
	v.guestMACs = append(v.guestMACs, v.gateway.MAC.String())
	asGateway := packet.Party{MAC: v.gateway.MAC, Addr: v.gateway.Addr}
	asItself := packet.Party{MAC: v.gateway.MAC, Addr: v.guest.Addr}
	for _, who := range []packet.Party{asGateway, asItself} {
		v.guestSends(v.questions(who, nil)...)
		v.guestSends(v.forbid(v.claims(who, v.neighbour, nil))...)
	}
	v.withMAC(v.gateway.MAC, func() { v.Request(guestagent.Get{Limit: time.Second}) })
	v.recover()
}

// recovery is how long the kernels may take to forget where a guest has said that it is, by their own timers.
const recovery = 30 * time.Second

// recover has the guest say where it is until it is served again: it has told the endpoint something else.
func (v *attackVM) recover() {
	begin := time.Now()
	for time.Since(begin) < recovery {
		v.Shell("arping -q -c 1 -w 1 -I eth0 169.254.169.254")
		if got := v.Request(guestagent.Get{Limit: time.Second}); got.Status == http.StatusOK {
			v.t.Logf("served again after %s", milliseconds(time.Since(begin)))
			return
		}
	}
	v.fail("served", "not served again within %s", recovery)
}

// withMAC does something while the guest has another MAC.
func (v *attackVM) withMAC(mac net.HardwareAddr, do func()) {
	set := func(mac net.HardwareAddr) string { return "ip link set dev eth0 address " + mac.String() }
	v.with(set(mac)+" && ip neigh flush dev eth0", set(v.guest.MAC)+" && ip neigh flush dev eth0", do)
}

// guestTakesOurMACs: a guest that speaks with the endpoint's MAC, or with its port's, is heard by nobody.
func guestTakesOurMACs(v *attackVM) {
	for _, mac := range []net.HardwareAddr{podnet.EndpointMAC, podnet.PortMAC} {
		who := packet.Party{MAC: mac, Addr: v.guest.Addr}
		v.guestSends(v.forbid(v.questions(who, nil))...)
		v.guestSends(v.forbid(v.claims(who, v.neighbour, nil))...)
		v.withMAC(mac, func() {
			if got := v.Request(guestagent.Get{Limit: time.Second}); got.Failure == "" {
				v.answered("a guest with the MAC %s: %d", mac, got.Status)
			}
		})
		v.serve(1)
	}
}

// guestTakesOurAddress: a guest that claims the address, to the neighbours and to the endpoint, harms itself alone.
func guestTakesOurAddress(v *attackVM) {
	v.with("ip addr add 169.254.169.254/32 dev eth0", "ip addr del 169.254.169.254/32 dev eth0", func() {
		for _, to := range []packet.Party{v.neighbour, v.gateway, v.endpoint} {
			v.guestSends(v.forbid(v.claims(v.guest, to, nil))...)
		}
		v.Shell("arping -c 1 -w 1 -U -I eth0 169.254.169.254; ping -c 1 -W 1 -I 169.254.169.254 " + v.neighbour.Addr.String() + "; true")
		v.probe()
	})
	v.serve(1)
}

// guestTakesOtherAddresses: a guest asks from addresses that are not its own: those of its gateway, of its
// neighbour, of the pod, of the bridge, of somebody far away. It alone hears an answer, if there is one.
func guestTakesOtherAddresses(v *attackVM) {
	others := []netip.Addr{
		podnet.NeighbourAddr, podnet.PodAddr, podnet.MasqueradeGateway, podnet.MasqueradeGuestAddr,
		netip.MustParseAddr("169.254.75.10"), // the bridge's in bridge binding
		netip.MustParseAddr("8.8.8.8"),
	}
	for _, addr := range others {
		if addr == v.guest.Addr {
			continue
		}
		entry := addr.String() + "/32 dev eth0"
		v.with("ip addr add "+entry, "ip addr del "+entry, func() {
			got := v.Request(guestagent.Get{Source: addr.String(), Limit: 2 * time.Second})
			v.t.Logf("from %s: %s%d", addr, got.Failure, got.Status)
			v.serve(1)
		})
	}
	// From addresses that nobody has.
	for _, addr := range []string{"127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"} {
		v.guestSends(v.questions(packet.Party{MAC: v.guest.MAC, Addr: netip.MustParseAddr(addr)}, nil)...)
	}
	v.serve(1)
}

// guestAdvertises: a guest that says it is everybody's IPv6 router gives the pod no address and no route.
func guestAdvertises(v *attackVM) {
	before := v.ipv6()
	router := packet.Party{MAC: v.guest.MAC, Addr: netip.MustParseAddr("fe80::bad")}
	v.guestSends(v.forbid([][]byte{packet.RouterAdvertisement(router, netip.MustParsePrefix("2001:db8:bad::/64"))})...)
	v.serve(1)
	if after := v.ipv6(); after != before {
		v.answered("IPv6 of the endpoint was\n%sand is\n%s", before, after)
	}
}

// ipv6 is what the pod has of IPv6 on our devices.
func (v *attackVM) ipv6() string {
	var text strings.Builder
	for _, name := range []string{endpointDevice, endpointPort} {
		link, err := v.Net.Pod.Netlink().LinkByName(name)
		check(v.t, err)
		addresses, err := v.Net.Pod.Netlink().AddrList(link, netlink.FAMILY_V6)
		check(v.t, err)
		routes, err := v.Net.Pod.Netlink().RouteList(link, netlink.FAMILY_V6)
		check(v.t, err)
		fmt.Fprintf(&text, "%s: %v %v\n", name, addresses, routes)
	}
	return text.String()
}

// manyMACs is more than a bridge has entries for at once by default on some nodes.
const manyMACs = 5000

// guestFillsTheBridge: a guest sends from thousands of MACs, so that the bridge forgets what it has learned. It still
// knows where the endpoint is.
func guestFillsTheBridge(v *attackVM) {
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
	v.guestSends(v.forbid(frames[:1])...)
	v.guestSends(frames[1:]...)
	v.serve(1)
	entries, err := v.Net.Pod.Netlink().NeighList(v.index(endpointPort), unix.AF_BRIDGE)
	check(v.t, err)
	if !slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
		return n.HardwareAddr.String() == podnet.EndpointMAC.String()
	}) {
		v.answered("the bridge no longer knows the endpoint's port: %v", entries)
	}
}

func (v *attackVM) index(name string) int {
	link, err := v.Net.Pod.Netlink().LinkByName(name)
	check(v.t, err)
	return link.Attrs().Index
}

// guestLooksForItsGateway: each of the guest's questions for its gateway's MAC is answered once, by the gateway.
func guestLooksForItsGateway(v *attackVM) {
	const questions = 5
	tap, err := podnet.Capture(v.Net.Pod, guestTap)
	check(v.t, err)
	v.Shell(fmt.Sprintf("arping -c %d -w %d -I eth0 %s", questions, questions+1, v.gateway.Addr))
	frames, err := tap.Stop()
	check(v.t, err)
	replies := map[string]int{}
	for _, f := range frames {
		payload := packet.Payload(f.Data)
		const arp = 0x0806
		if f.Outgoing && etherType(f) == arp && payload[7] == packet.ARPReply && netip.AddrFrom4([4]byte(payload[14:18])) == v.gateway.Addr {
			replies[source(f)]++
		}
	}
	if len(replies) != 1 || replies[v.gateway.MAC.String()] != questions {
		v.answered("to %d questions for the gateway %s the answers were %v, want one each", questions, v.gateway.MAC, replies)
	}
}

// containerAsks: a container behind the guest's NAT reaches the network, but not the service, whose answers last
// for one hop.
func containerAsks(v *attackVM) {
	container := v.StartContainer()
	v.Shell(container + "ping -c 1 -W 5 " + v.neighbour.Addr.String())
	ctx, cancel := context.WithTimeout(v.t.Context(), vmtest.Patience)
	defer cancel()
	ran, err := v.Guest.Agent.Run(ctx, guestagent.Run{Command: container + "wget -T 3 -q -O - " + vmtest.MetadataURL + "/v1/token"})
	check(v.t, err)
	if ran.Exit == 0 || strings.Contains(ran.Output, v.token) {
		v.answered("the container: %s", ran.Output)
	}
	v.serve(1)
}

// foreignRequests: requests that reach the guest's own network stack from elsewhere: by a page in its browser, by
// DNS rebinding, by a proxy that somebody else uses.
func foreignRequests(v *attackVM) {
	for _, request := range []struct {
		guestagent.Get
		status int
	}{
		{guestagent.Get{Header: map[string]string{"Host": "evil.example"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"Host": "169.254.169.254.evil.example"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"Host": "localhost"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"X-Forwarded-For": "203.0.113.1"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"Forwarded": "for=203.0.113.1"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"X-Real-IP": "203.0.113.1"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"Origin": "https://evil.example"}}, http.StatusForbidden},
		{guestagent.Get{Header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, http.StatusForbidden},
		{guestagent.Get{Method: http.MethodPost, Body: "token"}, http.StatusMethodNotAllowed},
		{guestagent.Get{Method: http.MethodPut}, http.StatusMethodNotAllowed},
		{guestagent.Get{Method: http.MethodDelete}, http.StatusMethodNotAllowed},
		{guestagent.Get{Method: http.MethodOptions}, http.StatusMethodNotAllowed},
		{guestagent.Get{Method: http.MethodTrace}, http.StatusMethodNotAllowed},
		{guestagent.Get{URL: vmtest.MetadataURL + "/v1/token/../token"}, 0},
		{guestagent.Get{URL: vmtest.MetadataURL + "//v1/token"}, 0},
	} {
		got := v.Request(request.Get)
		what := strings.TrimSpace(fmt.Sprintf("%s %s %v", request.Method, request.URL, request.Header))
		switch {
		case strings.Contains(got.Body, v.token):
			v.answered("%s: the token", what)
		case request.status != 0 && got.Status != request.status:
			v.answered("%s: %s%d, want %d", what, got.Failure, got.Status, request.status)
		}
	}
}
