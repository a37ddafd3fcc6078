package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// So many addresses of guests are heard at a time, of each family.
const sendersLimit = 16

// The kernel's neighbour table is one for all pods of the node. A guest that
// sends from thousands of addresses, whatever it sends, gets a few of them into
// it; the address that it had before is served all the while.
func TestGuestCannotFillTheNeighbourTable(t *testing.T) {
	const sources, atOnce = 2000, 100
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			pod, p := servedPod(t, options)
			acceptAllThatMakesNeighbours(t, pod)
			floods := floodsOf(mac(t, pod.Guest, "eth0"))
			if !pod.SpeaksIPv6() {
				floods = slices.DeleteFunc(floods, func(f flood) bool { return f.family == netlink.FAMILY_V6 })
			}
			before, refused := neighbours(t, pod), map[string]uint64{}
			for _, f := range floods {
				rule := "bridge prerouting, " + f.refusedBy
				counted := counters(t, pod)[rule]
				for first := 0; first < sources; first += atOnce {
					var frames [][]byte
					for i := range atOnce {
						frames = append(frames, f.frame(first+i))
					}
					sendFrames(t, pod.Guest, "eth0", frames...)
					// The answer tells too that the flood has been judged.
					mustServe(t, pod, guestOf(options))
				}
				refused[f.name] = counters(t, pod)[rule] - counted
			}
			after := neighbours(t, pod)
			for _, f := range floods {
				if n := refused[f.name]; n < sources-sendersLimit || n > sources {
					t.Errorf("%s: %d of %d were refused, want all but %d at most", f.name, n, sources, sendersLimit)
				}
			}
			for family, n := range after {
				if made := n - before[family]; made > sendersLimit {
					t.Errorf("the guest made %d neighbours of family %d, want %d at most", made, family, sendersLimit)
				}
			}
			t.Logf("neighbours by family: before %v, after %v", before, after)
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init took the guest's packets for a change: %q", lines)
			}
		})
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
	refusedBy string
}

func floodsOf(guest net.HardwareAddr) []flood {
	const asks, looks, asksIPv6, looksIPv6 = "nobody else asks", "nobody else looks for the endpoint", "nobody else asks over IPv6", "nobody else solicits its IPv6 address"
	at, anybody := podnet.MetadataAddr.AsSlice(), make([]byte, 6)
	fixed := netip.MustParseAddr("fe80::1")
	return []flood{
		{"connections", netlink.FAMILY_V4, func(i int) []byte { return syn(guest, wiring.DeviceMAC, sender(1, i), at, 80) }, asks},
		{"echo requests", netlink.FAMILY_V4, func(i int) []byte {
			return ipv4(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, sender(2, i), at, 0, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})
		}, asks},
		{"ARP requests", netlink.FAMILY_V4, func(i int) []byte { return arp(guest, broadcast, 1, guest, sender(3, i), anybody, at) }, looks},
		{"ARP replies", netlink.FAMILY_V4, func(i int) []byte {
			return arp(guest, wiring.DeviceMAC, 2, guest, sender(4, i), wiring.DeviceMAC, at)
		}, looks},
		{"connections over IPv6", netlink.FAMILY_V6, func(i int) []byte { return synIPv6(guest, wiring.DeviceMAC, senderIPv6(1, i), ours) }, asksIPv6},
		{"solicitations", netlink.FAMILY_V6, func(i int) []byte {
			return podnet.NeighbourMessage(solicitation, guest, groupMAC, senderIPv6(2, i), group, ours, guest)
		}, looksIPv6},
		{"advertisements", netlink.FAMILY_V6, func(i int) []byte {
			return podnet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, senderIPv6(3, i), ours, senderIPv6(3, i), guest)
		}, asksIPv6},
		{"advertisements of others", netlink.FAMILY_V6, func(i int) []byte {
			return podnet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, fixed, ours, senderIPv6(4, i), guest)
		}, asksIPv6},
	}
}

// sender and senderIPv6 give each frame of each flood an address of its own.
func sender(flood byte, i int) []byte {
	return []byte{198, 18, flood<<4 | byte(i>>8), byte(i)}
}

func senderIPv6(flood byte, i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: flood, 14: byte(i >> 8), 15: byte(i)})
}

// synIPv6 opens a TCP connection (RFC 9293) to port 80 over IPv6.
func synIPv6(source, target net.HardwareAddr, from, to netip.Addr) []byte {
	segment := []byte{0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0}
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(segment)), 0, 0, 0, unix.IPPROTO_TCP}, segment)
	binary.BigEndian.PutUint16(segment[16:], checksum(pseudo))
	return podnet.IPv6(source, target, from, to, unix.IPPROTO_TCP, segment)
}

// neighbours counts what the pod has in the node's neighbour tables, by family.
func neighbours(t *testing.T, pod *podnet.Pod) map[int]int {
	t.Helper()
	count := map[int]int{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		const everyInterface = 0
		entries, err := pod.Pod.Netlink().NeighList(everyInterface, family)
		must(t, err)
		for _, entry := range entries {
			if entry.State&netlink.NUD_NOARP == 0 { // those of multicast are the pod's own
				count[family]++
			}
		}
	}
	return count
}
