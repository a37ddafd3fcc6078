package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// The kernel's neighbour table is one for all pods of the node. The endpoint takes few
// places in it in each family, whatever a guest sends and from however many addresses;
// and the guest's own address is served all the while.
const neighboursLimit = 4

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
	for first := 0; first < sources; first += atOnce {
		var frames [][]byte
		for i := range atOnce {
			frames = append(frames, f.frame(first+i))
		}
		sendFrames(t, pod.Guest, "eth0", frames...)
		// The answer tells too that the frames have been judged.
		mustServe(t, pod, guest)
	}
	if have := neighbours(t, pod, f.family); have > neighboursLimit {
		t.Errorf("the endpoint has %d neighbours, want %d at most", have, neighboursLimit)
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
	name   string
	family int
	frame  func(i int) []byte
}

func floodsOf(guest net.HardwareAddr) []flood {
	at, anybody := podnet.MetadataAddr.AsSlice(), make([]byte, 6)
	fixed := netip.MustParseAddr("fe80::1")
	return []flood{
		{"connections", netlink.FAMILY_V4, func(i int) []byte { return syn(guest, wiring.DeviceMAC, sender(1, i), at, 80) }},
		{"echo requests", netlink.FAMILY_V4, func(i int) []byte {
			return ipv4(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, sender(2, i), at, 0, echoRequest)
		}},
		{"source routes", netlink.FAMILY_V4, func(i int) []byte {
			route := slices.Concat([]byte{131, 7, 8}, sender(5, i), []byte{0}) // loose, at its end (RFC 791)
			return ipv4WithOptions(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, sender(2, 0), at, 0, route, echoRequest)
		}},
		{"ARP requests", netlink.FAMILY_V4, func(i int) []byte { return arp(guest, broadcast, 1, guest, sender(3, i), anybody, at) }},
		{"ARP replies", netlink.FAMILY_V4, func(i int) []byte {
			return arp(guest, wiring.DeviceMAC, 2, guest, sender(4, i), wiring.DeviceMAC, at)
		}},
		{"connections over IPv6", netlink.FAMILY_V6, func(i int) []byte { return synIPv6(guest, wiring.DeviceMAC, senderIPv6(1, i), ours) }},
		{"solicitations", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(solicitation, guest, groupMAC, senderIPv6(2, i), group, ours, guest)
		}},
		{"advertisements", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, senderIPv6(3, i), ours, senderIPv6(3, i), guest)
		}},
		{"advertisements of others", netlink.FAMILY_V6, func(i int) []byte {
			return packet.NeighbourMessage(advertisement, guest, wiring.DeviceMAC, fixed, ours, senderIPv6(4, i), guest)
		}},
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

// neighbours counts what the endpoint has in the node's neighbour table of a family.
func neighbours(t *testing.T, pod *podnet.Pod, family int) int {
	t.Helper()
	entries, err := pod.Pod.Netlink().NeighList(link(t, pod, wiring.Device).Attrs().Index, family)
	must(t, err)
	return len(entries)
}

// Fifty containers in the guest ask again and again, with addresses of their own behind
// the guest's MAC, as those do that the guest routes, and as many with MACs of their
// own, as those that it bridges. All are answered, each at its own MAC, and the guest
// itself every time.
func TestManySendersAndTheGuestAreAnswered(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			nic, err := podnet.Capture(pod.Guest, "eth0")
			must(t, err)
			own := mac(t, pod.Guest, "eth0")
			const senders, rounds = 50, 10
			for range rounds {
				for i := range senders {
					routed := syn(own, wiring.DeviceMAC, sender(7, i), podnet.MetadataAddr.AsSlice(), 80)
					bridged := syn(containerMAC(i), wiring.DeviceMAC, sender(8, i), podnet.MetadataAddr.AsSlice(), 80)
					sendFrames(t, pod.Guest, "eth0", routed, bridged)
				}
				mustServe(t, pod, guestAddress(binding))
			}
			frames, err := nic.Stop()
			must(t, err)
			for i := range senders {
				for _, c := range []struct {
					at   net.HardwareAddr
					from []byte
				}{{own, sender(7, i)}, {containerMAC(i), sender(8, i)}} {
					if !slices.ContainsFunc(frames, func(f podnet.Frame) bool { return answers(f, c.at, c.from) }) {
						t.Errorf("%v at %s was not answered", net.IP(c.from), c.at)
					}
				}
			}
			if have := neighbours(t, pod, netlink.FAMILY_V4); have > neighboursLimit {
				t.Errorf("the endpoint has %d neighbours, want %d at most", have, neighboursLimit)
			}
		})
	}
}

// containerMAC is that of a container which the guest bridges.
func containerMAC(i int) net.HardwareAddr { return net.HardwareAddr{0x02, 0x42, 0, 0, 1, byte(i)} }

// answers says whether a frame that came in is a TCP segment of the endpoint's to the
// address at the MAC.
func answers(f podnet.Frame, at net.HardwareAddr, to []byte) bool {
	const header = 14
	d := f.Data
	return !f.Outgoing && len(d) >= header+40 && bytes.Equal(d[:6], at) && bytes.Equal(d[6:12], wiring.DeviceMAC) &&
		d[header+9] == unix.IPPROTO_TCP && bytes.Equal(d[header+16:header+20], to)
}

// A bridged container that sends from as many addresses as the kernel remembers, and
// more, takes no place from the guest, even where the guest was silent until then.
func TestGuestHasItsPlaceBesideAFlood(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			forgetAskers(t, pod)
			const atOnce = 100
			for first := 0; first < 2*askersLimit; first += atOnce {
				var frames [][]byte
				for i := first; i < first+atOnce; i++ {
					frames = append(frames, syn(containerMAC(i), wiring.DeviceMAC, sender(10+byte(i>>12), i&0xfff), podnet.MetadataAddr.AsSlice(), 80))
					frames = append(frames, synIPv6(containerMAC(i), wiring.DeviceMAC, senderIPv6(9, i), ours))
				}
				sendFrames(t, pod.Guest, "eth0", frames...)
			}
			mustServe(t, pod, guestAddress(binding))
			if have := len(askers(t, pod)); have < askersLimit-1 {
				t.Errorf("the flood has taken %d places of %d, so this proves nothing", have, askersLimit)
			}
		})
	}
}

const askersLimit = 4096

// A guest whose NIC gets another MAC, or whose address moves to another of its MACs, is
// answered there from its next connection on.
func TestAnswersFollowTheMAC(t *testing.T) {
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	eth0, err := pod.Guest.Netlink().LinkByName("eth0")
	must(t, err)
	for i := range 3 {
		must(t, pod.Guest.Netlink().LinkSetHardwareAddr(eth0, containerMAC(i)))
		mustServeIPv4(t, pod, guestAddress(podnet.Bridge))
		mustServeIPv6(t, pod, "eth0")
	}
}

// What the kernel remembers of senders stays while others change nf_tables, while
// imds-init repairs its rules, and while it is killed and started again: no answer is
// lost by it.
func TestSendersAreRememberedWhileRulesAreRepaired(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	want := askers(t, pod)
	changeRulesOfOthers(t, pod)
	nft, err := pod.Pod.Nftables()
	must(t, err)
	nft.FlushChain(&nftables.Chain{Name: "prerouting", Table: &nftables.Table{Name: "imds", Family: nftables.TableFamilyBridge}})
	must(t, nft.Flush())
	p.waitFor(t, "msg=repaired")
	if have := askers(t, pod); len(have) != len(want) {
		t.Errorf("after a repair %d senders are remembered of %d", len(have), len(want))
	}
	p.kill()
	p = start(t, pod, onThisKernel)
	p.waitFor(t, "msg=wired")
	if have := askers(t, pod); len(have) != len(want) {
		t.Errorf("after a new start %d senders are remembered of %d", len(have), len(want))
	}
}

// askers returns the senders over IPv4 whose MACs the kernel remembers.
func askers(t *testing.T, pod *podnet.Pod) []nftables.SetElement {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	elements, err := nft.GetSetElements(askersMap(t, nft, "askers-ipv4"))
	must(t, err)
	return elements
}

func askersMap(t *testing.T, nft *nftables.Conn, name string) *nftables.Set {
	t.Helper()
	m, err := nft.GetSetByName(&nftables.Table{Name: "imds", Family: nftables.TableFamilyBridge}, name)
	must(t, err)
	return m
}

// forgetAskers empties the maps, as time would.
func forgetAskers(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	for _, name := range []string{"askers-ipv4", "askers-ipv6"} {
		nft.FlushSet(askersMap(t, nft, name))
	}
	must(t, nft.Flush())
}
