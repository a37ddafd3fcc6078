package main

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// So many addresses of guests are heard at a time, of each family.
const sendersLimit = 16

// The kernel's neighbour table is one for all pods of the node. A guest that
// sends from thousands of addresses, whatever it sends, gets a few of them into
// it; the address that it had before is served all the while.
func TestGuestCannotFillTheNeighbourTable(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			pod, p := servedPod(t, options)
			acceptAllThatMakesNeighbours(t, pod)
			for _, f := range floodsOf(mac(t, pod.Guest, "eth0")) {
				if f.family == netlink.FAMILY_V4 || pod.SpeaksIPv6() {
					t.Run(f.name, func(t *testing.T) { wantFewNeighbours(t, pod, guestOf(options), f) })
				}
			}
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init took the guest's packets for a change: %q", lines)
			}
		})
	}
}

func wantFewNeighbours(t *testing.T, pod *podnet.Pod, guest string, f flood) {
	t.Helper()
	const sources, atOnce = 2000, 100
	forgetSenders(t, pod)
	mustServe(t, pod, guest)
	rule := "bridge prerouting, " + f.refusedBy
	counted, before := counters(t, pod)[rule], neighbours(t, pod, f.family)
	for first := 0; first < sources; first += atOnce {
		var frames [][]byte
		for i := range atOnce {
			frames = append(frames, f.frame(first+i))
		}
		sendFrames(t, pod.Guest, "eth0", frames...)
		// The answer tells too that the frames have been judged.
		mustServe(t, pod, guest)
	}
	if n := counters(t, pod)[rule] - counted; n < sources-sendersLimit {
		t.Errorf("%d of %d were refused, want all but %d at most", n, sources, sendersLimit)
	}
	if made := neighbours(t, pod, f.family) - before; made >= sendersLimit {
		t.Errorf("the guest made %d neighbours, want less than %d: it has one already", made, sendersLimit)
	}
}

// acceptAllThatMakesNeighbours sets what an administrator of the node may have set
// for all of its pods, and what each makes neighbours of more than is answered:
// unsolicited ARP and advertisements, and the way that a packet has chosen.
func acceptAllThatMakesNeighbours(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	must(t, pod.Pod.Sysctl("net.ipv4.conf.all.arp_accept", "1"))
	must(t, pod.Pod.Sysctl("net.ipv4.conf."+wiring.Device+".arp_accept", "1"))
	must(t, pod.Pod.Sysctl("net.ipv4.conf.all.accept_source_route", "1"))
	if pod.SpeaksIPv6() {
		must(t, pod.Pod.Sysctl("net.ipv6.conf."+wiring.Device+".forwarding", "1"))
		must(t, pod.Pod.Sysctl("net.ipv6.conf."+wiring.Device+".accept_untracked_na", "1"))
	}
}

// flood is a kind of frame, of which there is one for each number.
type flood struct {
	name      string
	family    int
	frame     func(i int) []byte
	refusedBy string // the rule of the bridge that drops what is too much
}

func floodsOf(guest net.HardwareAddr) []flood {
	const asks, looks, asksIPv6, looksIPv6 = "nobody else asks", "nobody else looks for the endpoint", "nobody else asks over IPv6", "nobody else solicits its IPv6 address"
	at, anybody := podnet.MetadataAddr.AsSlice(), make([]byte, 6)
	fixed := netip.MustParseAddr("fe80::1")
	return []flood{
		{"connections", netlink.FAMILY_V4, func(i int) []byte { return syn(guest, wiring.DeviceMAC, sender(1, i), at, 80) }, asks},
		{"echo requests", netlink.FAMILY_V4, func(i int) []byte {
			return ipv4(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, sender(2, i), at, 0, echoRequest)
		}, asks},
		{"source routes", netlink.FAMILY_V4, func(i int) []byte {
			route := slices.Concat([]byte{131, 7, 8}, sender(5, i), []byte{0}) // loose, at its end (RFC 791)
			return ipv4WithOptions(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, sender(2, 0), at, 0, route, echoRequest)
		}, "a question has no options"},
		{"ARP requests", netlink.FAMILY_V4, func(i int) []byte { return arp(guest, broadcast, 1, guest, sender(3, i), anybody, at) }, looks},
		{"ARP replies", netlink.FAMILY_V4, func(i int) []byte {
			return arp(guest, wiring.DeviceMAC, 2, guest, sender(4, i), wiring.DeviceMAC, at)
		}, looks},
		{"connections over IPv6", netlink.FAMILY_V6, func(i int) []byte { return synIPv6(guest, wiring.DeviceMAC, senderIPv6(1, i), ours) }, asksIPv6},
		{"solicitations", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(solicitation, guest, groupMAC, senderIPv6(2, i), group, ours, guest)
		}, looksIPv6},
		{"advertisements", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, senderIPv6(3, i), ours, senderIPv6(3, i), guest)
		}, asksIPv6},
		{"advertisements of others", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, fixed, ours, senderIPv6(4, i), guest)
		}, asksIPv6},
	}
}

// echoRequest is a message of ICMP (RFC 792).
var echoRequest = []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}

// sender and senderIPv6 give each frame of each flood an address of its own.
func sender(flood byte, i int) []byte {
	return []byte{198, 18, flood<<4 | byte(i>>8), byte(i)} // 198.18.0.0/15 is for tests (RFC 2544)
}

func senderIPv6(flood byte, i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: flood, 14: byte(i >> 8), 15: byte(i)})
}

// synIPv6 opens a TCP connection (RFC 9293) to port 80 over IPv6.
func synIPv6(source, target net.HardwareAddr, from, to netip.Addr) []byte {
	segment := []byte{0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0}
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(segment)), 0, 0, 0, unix.IPPROTO_TCP}, segment)
	binary.BigEndian.PutUint16(segment[16:], checksum(pseudo))
	return packet.IPv6(source, target, from, to, unix.IPPROTO_TCP, segment)
}

// neighbours counts what the pod has in the node's neighbour table of a family.
func neighbours(t *testing.T, pod *podnet.Pod, family int) (n int) {
	t.Helper()
	const everyInterface = 0
	entries, err := pod.Pod.Netlink().NeighList(everyInterface, family)
	must(t, err)
	for _, entry := range entries {
		if entry.State&netlink.NUD_NOARP == 0 { // those of multicast are the pod's own
			n++
		}
	}
	return n
}

// Where no room is left a new address of the guest is not heard, until one that
// was silent is forgotten. Nobody but the guest takes its room.
func TestSilentSenderMakesRoom(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			families := []string{"senders-ipv4"}
			if pod.SpeaksIPv6() {
				families = append(families, "senders-ipv6")
			}
			for _, name := range families {
				if n := len(senders(t, pod, name)); n != 1 {
					t.Errorf("%s: %d elements when one guest has asked, want 1", name, n)
				}
				for _, heard := range senders(t, pod, name) {
					if heard.Expires > time.Minute {
						t.Errorf("%s: %x is kept for %s", name, heard.Key, heard.Expires)
					}
				}
			}

			// So that the test takes no minute, the others are forgotten sooner.
			fillSenders(t, pod, 2*time.Second)
			routeBy(t, pod, "eth0", "192.0.2.77")
			questions := counters(t, pod)["bridge prerouting, nobody else asks"]
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			conn, err := pod.Guest.Dial(ctx, "tcp", endpoint)
			must(t, err)
			conn.Close()
			if counters(t, pod)["bridge prerouting, nobody else asks"] == questions {
				t.Error("the new address was heard at once, though there was no room for it")
			}
			mustServeIPv4(t, pod, "192.0.2.77")
		})
	}
}

// Who asks keeps its place: its time begins anew.
func TestSenderThatAsksIsKept(t *testing.T) {
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	const soon = 10 * time.Second
	forgetSenders(t, pod)
	addSenders(t, pod, "senders-ipv4", nftables.SetElement{Key: podnet.PodAddr.AsSlice(), Timeout: soon})
	mustServeIPv4(t, pod, guestAddress(podnet.Bridge))
	for _, heard := range senders(t, pod, "senders-ipv4") {
		if heard.Expires <= soon {
			t.Errorf("%x has just asked and is forgotten in %s", heard.Key, heard.Expires)
		}
	}
}

// What is in the sets stays there while others change nf_tables, and while
// imds-init repairs something else: no event makes room for a flood.
func TestSendersAreKeptWhileTheRulesAre(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	fillSenders(t, pod, time.Minute)
	changeRulesOfOthers(t, pod)
	deleteAddress(t, pod, netlink.FAMILY_V4)
	p.waitFor(t, "msg=repaired")
	for _, name := range []string{"senders-ipv4", "senders-ipv6"} {
		if n := len(senders(t, pod, name)); n != sendersLimit {
			t.Errorf("%s: %d elements are left of %d", name, n, sendersLimit)
		}
	}
	mustServe(t, pod, guestAddress(podnet.Bridge))
}

// senders returns the elements of one of the sets of addresses that are heard.
func senders(t *testing.T, pod *podnet.Pod, name string) []nftables.SetElement {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	elements, err := nft.GetSetElements(sendersSet(t, nft, name))
	must(t, err)
	return elements
}

func sendersSet(t *testing.T, nft *nftables.Conn, name string) *nftables.Set {
	t.Helper()
	set, err := nft.GetSetByName(&nftables.Table{Name: "imds", Family: nftables.TableFamilyBridge}, name)
	must(t, err)
	return set
}

// forgetSenders empties the sets, as time would.
func forgetSenders(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	for _, name := range []string{"senders-ipv4", "senders-ipv6"} {
		nft.FlushSet(sendersSet(t, nft, name))
	}
	must(t, nft.Flush())
}

// fillSenders takes what room is left in the sets, for a time.
func fillSenders(t *testing.T, pod *podnet.Pod, lasting time.Duration) {
	t.Helper()
	for name, address := range map[string]func(i int) []byte{
		"senders-ipv4": func(i int) []byte { return sender(6, i) },
		"senders-ipv6": func(i int) []byte { return senderIPv6(6, i).AsSlice() },
	} {
		var more []nftables.SetElement
		for i := range sendersLimit - len(senders(t, pod, name)) {
			more = append(more, nftables.SetElement{Key: address(i), Timeout: lasting})
		}
		addSenders(t, pod, name, more...)
	}
}

func addSenders(t *testing.T, pod *podnet.Pod, name string, more ...nftables.SetElement) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	must(t, nft.SetAddElements(sendersSet(t, nft, name), more))
	must(t, nft.Flush())
}
