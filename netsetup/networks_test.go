package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// The VM's second network in these tests: KubeVirt names what belongs to it.
const (
	secondInterface = "pod16477688c0e"
	secondBridge    = "k6t-16477688c0e"
	secondTap       = "tap16477688c0e"
	secondUplink    = "16477688c0e-nic"
	secondAddress   = "10.245.1.5"
	beyondSecond    = "10.245.1.1"
)

// twoNetworks is a served pod whose guest has a second NIC, with an address.
func twoNetworks(t *testing.T, options podnet.Options, env ...string) (*podnet.Pod, *imdsInit) {
	t.Helper()
	pod, p := servedPod(t, options, env...)
	must(t, pod.AddSecondaryBridge(secondInterface))
	if env == nil {
		p.waitFor(t, "led="+secondTap)
	}
	return pod, p
}

// defaultRouteBySecond moves the guest's default route to its second NIC.
func defaultRouteBySecond(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	nic, err := pod.Guest.Netlink().LinkByName("eth1")
	must(t, err)
	must(t, pod.Guest.Netlink().RouteReplace(&netlink.Route{LinkIndex: nic.Attrs().Index, Gw: net.ParseIP(beyondSecond)}))
}

// A guest whose default route leaves by another NIC than the one that is served is
// served all the same, at the NIC that it asked by, whatever its settings against
// answers by the wrong NIC; and nothing of it is on that network.
func TestGuestWhoseDefaultRouteLeavesByAnotherNIC(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			pod, p := twoNetworks(t, podnet.Options{Binding: binding})
			must(t, pod.Guest.Sysctl("net.ipv4.conf.all.rp_filter", "1"))
			must(t, pod.Guest.Sysctl("net.ipv4.conf.eth1.rp_filter", "1"))
			defaultRouteBySecond(t, pod)
			uplink, err := podnet.Capture(pod.Neighbour, "up1")
			must(t, err)
			for range 3 {
				mustServeIPv4(t, pod, secondAddress)
			}
			wantPassing(t, pod.Guest, beyondSecond)
			frames, err := uplink.Stop()
			must(t, err)
			for _, frame := range frames {
				if frame.ConcernsMetadata() {
					t.Errorf("on the second network: %v", frame)
				}
			}
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init took the guest's packets for a change: %q", lines)
			}
		})
	}
}

// wantPassing fails unless the namespace reaches an address, where nobody listens.
func wantPassing(t *testing.T, from *podnet.Namespace, address string) {
	t.Helper()
	wantRefused(t, from, "tcp", net.JoinHostPort(address, "9"))
}

// A neighbour on the second network is no guest: what it sends to the address, by
// whichever MAC, is not led anywhere.
func TestNeighbourOnTheSecondNetworkGetsNoAnswer(t *testing.T) {
	pod, _ := twoNetworks(t, podnet.Options{Binding: podnet.Masquerade})
	defaultRouteBySecond(t, pod)
	mustServeIPv4(t, pod, secondAddress)
	for _, to := range []net.HardwareAddr{wiring.DeviceMAC, wiring.PortMAC, mac(t, pod.Pod, secondBridge), mac(t, pod.Guest, "eth1")} {
		ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
		reply, err := pod.NeighbourAsksBy(ctx, "up1", to)
		cancel()
		must(t, err)
		if reply.Outcome == podnet.Answered {
			t.Errorf("neighbour on the second network that asks %s: %v", to, reply)
		}
	}
}

// A network may have the address itself. A guest that has it there is found by its
// neighbours; one whose owner has named the network that is served finds the other's.
func TestSecondNetworkMayHaveTheAddress(t *testing.T) {
	on := true
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		for _, side := range []string{"neighbour", "guest"} {
			t.Run(string(binding)+", at the "+side, func(t *testing.T) {
				named := map[string][]string{"neighbour": {"IMDS_NETWORK=default"}}[side]
				pod, _ := twoNetworks(t, podnet.Options{Binding: binding, BridgeNetfilter: &on}, named...)
				server, client, at, by := pod.Neighbour, pod.Guest, "up1", "eth1"
				if side == "guest" {
					server, client, at, by = pod.Guest, pod.Neighbour, "eth1", "up1"
				}
				address, err := netlink.ParseAddr("169.254.169.254/32")
				must(t, err)
				must(t, server.Netlink().AddrAdd(linkIn(t, server, at), address))
				must(t, client.Netlink().RouteAdd(&netlink.Route{
					LinkIndex: linkIn(t, client, by).Attrs().Index, Scope: unix.RT_SCOPE_LINK,
					Dst: &net.IPNet{IP: wiring.Address.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)},
				}))
				listener, err := server.Listen(t.Context(), "tcp", endpoint)
				must(t, err)
				defer listener.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				conn, err := client.Dial(ctx, "tcp", endpoint)
				if err != nil {
					t.Fatalf("the second network's own service is cut off: %v", err)
				}
				defer conn.Close()
				accepted, err := listener.Accept()
				must(t, err)
				accepted.Close()
			})
		}
	}
}

func linkIn(t *testing.T, n *podnet.Namespace, name string) netlink.Link {
	t.Helper()
	l, err := n.Netlink().LinkByName(name)
	must(t, err)
	return l
}

// A port of the bridge that is neither a tap nor an uplink, such as another sidecar's,
// keeps its network: it is not isolated. An uplink is, and no longer once the endpoint
// has moved to another bridge.
func TestOnlyTheUplinkOfTheJoinedBridgeIsIsolated(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Masquerade})
	p := start(t, pod, onThisKernel, "IMDS_PREFERRED_BRIDGE=k6t-eth0")
	must(t, pod.Wire())
	must(t, pod.AddSecondaryBridge(secondInterface))
	p.waitFor(t, "msg=wired bridge=k6t-eth0")
	must(t, pod.RemoveBridge())
	p.waitFor(t, "msg=wired bridge="+secondBridge)
	if !isolated(t, pod, secondUplink) {
		t.Errorf("%s is not isolated from the endpoint", secondUplink)
	}
	sidecar := netlink.NewVeth(netlink.LinkAttrs{Name: "sidecar0", MTU: 1500})
	sidecar.PeerName = "sidecar1"
	must(t, pod.Pod.Netlink().LinkAdd(sidecar))
	port := link(t, pod, "sidecar0")
	must(t, pod.Pod.Netlink().LinkSetMasterByIndex(port, link(t, pod, secondBridge).Attrs().Index))
	must(t, pod.RestoreBridge())
	p.waitFor(t, "msg=wired bridge=k6t-eth0")
	if isolated(t, pod, secondUplink) {
		t.Errorf("%s is isolated still, though the endpoint has left its bridge", secondUplink)
	}
	if isolated(t, pod, "sidecar0") {
		t.Error("another sidecar's port is isolated")
	}
}

func isolated(t *testing.T, pod *podnet.Pod, port string) bool {
	t.Helper()
	info, err := pod.Pod.Netlink().LinkGetProtinfo(link(t, pod, port))
	must(t, err)
	return info.Isolated
}

// With an MTU that IPv6 cannot be with, IPv4 is served and repaired; and IPv6 is there
// again with a larger one, without an address of the kernel's own making.
func TestFamiliesFailApart(t *testing.T) {
	requireIPv6(t)
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	setMTU := func(mtu int) {
		for _, port := range []string{"tap0", "eth0-nic"} {
			must(t, pod.Pod.Netlink().LinkSetMTU(link(t, pod, port), mtu))
		}
	}
	setMTU(1200)
	p.waitFor(t, "mtu=1200 ipv6=false")
	mustServeIPv4(t, pod, guestAddress(podnet.Bridge))
	deleteAddress(t, pod, netlink.FAMILY_V4)
	p.waitFor(t, "msg=repaired")
	mustServeIPv4(t, pod, guestAddress(podnet.Bridge))
	setMTU(1500)
	p.waitFor(t, "mtu=1500 ipv6=true")
	mustServe(t, pod, guestAddress(podnet.Bridge))
	for _, end := range []string{wiring.Device, wiring.Port} {
		addresses, err := pod.Pod.Netlink().AddrList(link(t, pod, end), netlink.FAMILY_V6)
		must(t, err)
		for _, a := range addresses {
			if addr, _ := netip.AddrFromSlice(a.IP); addr != wiring.AddressIPv6.Addr() {
				t.Errorf("%s has the address %s", end, addr)
			}
		}
	}
}

// Any number of taps is served: the rules do not grow with them.
func TestFortyTaps(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	for i := range 40 {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap9" + string(rune('a'+i/26)) + string(rune('a'+i%26)), MTU: 1500}, Mode: netlink.TUNTAP_MODE_TAP}
		if !podnet.RealTaps() {
			t.Skip("no taps can be made here: /dev/net/tun is missing or not for this user")
		}
		must(t, pod.Pod.Do(func() error { return netlink.LinkAdd(tap) }))
		must(t, pod.Pod.Netlink().LinkSetMasterByIndex(link(t, pod, tap.Name), link(t, pod, "k6t-eth0").Attrs().Index))
	}
	for {
		if line := p.waitFor(t, "msg=wired"); len(line) > 40*len("tap9aa,") {
			break
		}
	}
	mustServe(t, pod, guestAddress(podnet.Bridge))
}

// The reply to a guest that looks for the endpoint by ARP is for its address, as clients
// ask that judge strictly (RFC 826), also where a MAC has several addresses.
func TestARPReplyIsForWhoLooks(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			nic, err := podnet.Capture(pod.Guest, "eth0")
			must(t, err)
			own := mac(t, pod.Guest, "eth0")
			for _, from := range []netip.Addr{netip.MustParseAddr(guestAddress(binding)), netip.MustParseAddr("192.0.2.7"), netip.IPv4Unspecified()} {
				who := packet.Party{MAC: own, Addr: from}
				must(t, pod.Guest.SendFrame("eth0", packet.ARP(packet.ARPRequest, own, packet.Broadcast, who, packet.Party{Addr: wiring.Address.Addr()})))
				want := packet.ARP(packet.ARPReply, wiring.DeviceMAC, own, packet.Party{MAC: wiring.DeviceMAC, Addr: wiring.Address.Addr()}, who)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				if err := nic.Wait(ctx, func(f podnet.Frame) bool { return !f.Outgoing && bytes.HasPrefix(f.Data, want) }); err != nil {
					t.Errorf("no reply for %s: %v", from, err)
				}
				cancel()
			}
		})
	}
}

// A guest that routes between its networks does not carry questions and answers for its
// neighbours, though its own containers get theirs by the same routes.
func TestGuestThatRoutesServesNoNeighbour(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			pod, _ := twoNetworks(t, podnet.Options{Binding: binding})
			for _, n := range []string{"all", "eth0", "eth1"} {
				must(t, pod.Guest.Sysctl("net.ipv4.conf."+n+".rp_filter", "0"))
			}
			must(t, pod.Guest.Sysctl("net.ipv4.ip_forward", "1"))
			must(t, pod.Neighbour.Netlink().RouteAdd(&netlink.Route{
				LinkIndex: linkIn(t, pod.Neighbour, "up1").Attrs().Index, Gw: net.ParseIP(secondAddress),
				Dst: &net.IPNet{IP: wiring.Address.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)},
			}))
			atEndpoint, err := podnet.Capture(pod.Pod, wiring.Device)
			must(t, err)
			if answer, err := askFrom(pod.Neighbour, endpoint); err == nil {
				t.Errorf("the neighbour is answered %q by way of the guest", answer)
			}
			frames, err := atEndpoint.Stop()
			must(t, err)
			if !slices.ContainsFunc(frames, func(f podnet.Frame) bool { return bytes.Contains(f.Data, net.ParseIP(beyondSecond).To4()) }) {
				t.Error("the guest has not routed the question, so this proves nothing")
			}
			mustServeIPv4(t, pod, guestAddress(binding))
		})
	}
}

// Who asks by another NIC from the guest's own address, or from thousands of addresses,
// takes nothing from the guest, and no question leaves by that network.
func TestLedQuestionsTakeNothingFromTheGuest(t *testing.T) {
	pod, _ := twoNetworks(t, podnet.Options{Binding: podnet.Masquerade})
	uplink, err := podnet.Capture(pod.Neighbour, "up1")
	must(t, err)
	own := podnet.MasqueradeGuestAddr.AsSlice()
	sendFrames(t, pod.Guest, "eth1", syn(containerMAC(1), wiring.DeviceMAC, own, podnet.MetadataAddr.AsSlice(), 80))
	mustServeIPv4(t, pod, guestAddress(podnet.Masquerade))
	const atOnce = 256
	for first := 0; first < askersLimit+atOnce; first += atOnce {
		var frames [][]byte
		for i := first; i < first+atOnce; i++ {
			frames = append(frames, syn(containerMAC(i), wiring.DeviceMAC, sender(byte(i>>12)+10, i&0xfff), podnet.MetadataAddr.AsSlice(), 80))
		}
		sendFrames(t, pod.Guest, "eth1", frames...)
	}
	mustServeIPv4(t, pod, guestAddress(podnet.Masquerade))
	wantPassing(t, pod.Guest, beyondSecond)
	frames, err := uplink.Stop()
	must(t, err)
	for _, frame := range frames {
		if frame.ConcernsMetadata() {
			t.Fatalf("on the second network: %v", frame)
		}
	}
}

// A VLAN of the guest's on its second NIC is another network there too.
func TestVLANOnTheSecondNICIsAnotherNetwork(t *testing.T) {
	pod, _ := twoNetworks(t, podnet.Options{Binding: podnet.Masquerade})
	heard, err := podnet.Capture(pod.Neighbour, "up1")
	must(t, err)
	own := mac(t, pod.Guest, "eth1")
	frame := tag(syn(own, mac(t, pod.Neighbour, "up1"), net.ParseIP(secondAddress).To4(), podnet.MetadataAddr.AsSlice(), 80), unix.ETH_P_8021Q, 7)
	must(t, pod.Guest.SendFrame("eth1", frame))
	must(t, heard.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, frame) }))
}

// A frame to a link-local group passes the bridge's rules by. Its source does not move the
// endpoint's MAC, nor that of the guests.
func TestLinkLocalGroupMovesNoMAC(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		pod, _ := servedPod(t, podnet.Options{Binding: binding})
		for _, source := range []net.HardwareAddr{wiring.DeviceMAC, wiring.GuestsMAC} {
			for last := byte(0); last < 16; last++ {
				group := net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, last}
				sendFrames(t, pod.Guest, "eth0", append(ethernet(source, group, 0x88b5), make([]byte, 46)...))
				sendFrames(t, pod.Neighbour, podnet.NeighbourInterface, append(ethernet(source, group, 0x88b5), make([]byte, 46)...))
			}
			mustServe(t, pod, guestAddress(binding))
		}
	}
}

// The pod's routes of other devices stay, whatever happens to ours.
func TestForeignRoutesStay(t *testing.T) {
	requireIPv6(t)
	pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
	must(t, pod.Wire())
	foreign := func() (all []string) {
		routes, err := pod.Pod.Netlink().RouteList(nil, netlink.FAMILY_ALL)
		must(t, err)
		device, _ := pod.Pod.Netlink().LinkByName(wiring.Device)
		for _, r := range routes {
			if device == nil || r.LinkIndex != device.Attrs().Index {
				all = append(all, fmt.Sprint(r.LinkIndex, r.Dst, r.Gw, r.Table, r.Priority))
			}
		}
		slices.Sort(all)
		return all
	}
	must(t, pod.StartGuest())
	before := foreign()
	p := start(t, pod, onThisKernel)
	p.waitFor(t, "msg=wired")
	for range 3 {
		deleteLink(t, pod, wiring.Device)
		p.waitFor(t, "msg=repaired")
	}
	if after := foreign(); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter  %q", before, after)
	}
}

// While no bridge is joined, because it is still to be made or is made anew, a guest's
// question leaves by none: the bridge may come before its event does.
func TestQuestionsStayWhileNoBridgeIsJoined(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	must(t, pod.RemoveBridge())
	p.waitFor(t, "nobody to serve yet")
	p.kill() // so that the bridge comes long before its event
	uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
	must(t, err)
	must(t, pod.RestoreBridge())
	wantRefused(t, pod.Guest, "tcp", net.JoinHostPort(podnet.NeighbourAddr.String(), "9"))
	if answer, err := ask(pod); err == nil {
		t.Errorf("the guest is answered %q", answer)
	}
	frames, err := uplink.Stop()
	must(t, err)
	for _, frame := range frames {
		if frame.ConcernsMetadata() {
			t.Fatalf("on the uplink: %v", frame)
		}
	}
}
