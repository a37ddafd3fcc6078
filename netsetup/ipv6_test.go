package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// The log says whether there is IPv6, and a pod without it is no error.
func TestWiredLineTellsOfIPv6(t *testing.T) {
	for _, without := range []bool{false, true} {
		pod := newPod(t, podnet.Options{WithoutIPv6: without})
		p := start(t, pod, onThisKernel)
		p.waitFor(t, "endpoint ready")
		must(t, pod.Wire())
		if line, want := p.waitFor(t, "msg=wired"), fmt.Sprintf(" ipv6=%t ", pod.SpeaksIPv6()); !strings.Contains(line, want) {
			t.Errorf("%s, want%s", line, want)
		}
	}
}

// Whatever MAC a guest takes the address to have, it is served: a false entry in
// its neighbour cache draws nothing away.
func TestGuestWithFalseNeighbourIsServedOverIPv6(t *testing.T) {
	requireIPv6(t)
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			pod, _ := servedPod(t, options)
			nic, err := pod.Guest.Netlink().LinkByName("eth0")
			must(t, err)
			for _, wrong := range []net.HardwareAddr{
				mac(t, pod.Neighbour, podnet.NeighbourInterface), mac(t, pod.Pod, "k6t-eth0"), {2, 0, 0, 0, 0, 9}, broadcast,
			} {
				must(t, pod.Guest.Netlink().NeighSet(&netlink.Neigh{
					LinkIndex: nic.Attrs().Index, IP: ours.AsSlice(), HardwareAddr: wrong, State: netlink.NUD_PERMANENT,
				}))
				mustServeIPv6(t, pod, "eth0")
			}
		})
	}
}

// What the guest's own IPv6 needs is none of our business: it solicits its
// neighbour, is solicited, hears routers and talks.
func TestGuestKeepsItsOwnIPv6(t *testing.T) {
	requireIPv6(t)
	for _, binding := range []podnet.Binding{podnet.Bridge, podnet.ManagedTap} {
		t.Run(string(binding), func(t *testing.T) {
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			l := newLink(t, pod)
			for _, way := range []struct {
				from port
				to   netip.Addr
			}{{l.guest, l.neighbourAddr}, {l.neighbour, l.guestAddr}} {
				forgetNeighbours(t, pod.Guest)
				nic, err := way.from.in.Netlink().LinkByName(way.from.name)
				must(t, err)
				at := netip.AddrPortFrom(way.to.WithZone(fmt.Sprint(nic.Attrs().Index)), 9)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				_, err = way.from.in.Dial(ctx, "tcp", at.String())
				cancel()
				if err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("%s does not reach %s: %v", way.from.name, way.to, err)
				}
			}
			routers := packet.ICMPv6(l.neighbourMAC, allNodesMAC, l.neighbourAddr, allNodes, advertisedRouter)
			must(t, l.neighbour.in.SendFrame(l.neighbour.name, routers))
			must(t, l.atGuest.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, routers) }))
		})
	}
}

// A VLAN of the guest's own passes as it is, in both directions, though there is
// the address in it: it is another network's. So it does where the node hands
// tagged frames to the rules of the other families.
func TestVLANIsAnotherNetwork(t *testing.T) {
	requireIPv6(t)
	on := true
	for _, filtered := range []string{"0", "1"} {
		t.Run("bridge-nf-filter-vlan-tagged="+filtered, func(t *testing.T) {
			pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge, BridgeNetfilter: &on})
			must(t, pod.Pod.Sysctl("net.bridge.bridge-nf-filter-vlan-tagged", filtered))
			wantVLANsToPass(t, pod)
		})
	}
}

func wantVLANsToPass(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	l := newLink(t, pod)
	endpointHeard, err := podnet.Capture(pod.Pod, wiring.Device)
	must(t, err)
	guest, stranger := podnet.PodAddr.AsSlice(), podnet.NeighbourAddr.AsSlice()
	address := podnet.MetadataAddr.AsSlice()
	for _, kind := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
		outer := func(frame []byte) []byte { return tag(frame, kind, 7) }
		for _, frame := range [][]byte{
			outer(udp(l.guestMAC, l.neighbourMAC, guest, address, 0)),
			outer(udp(l.guestMAC, l.neighbourMAC, address, stranger, 0)),
			outer(arp(l.guestMAC, broadcast, 1, l.guestMAC, guest, make([]byte, 6), address)),
			outer(packet.NeighbourMessage(solicitation, l.guestMAC, groupMAC, l.guestAddr, group, ours, l.guestMAC)),
			outer(tag(udp(l.guestMAC, l.neighbourMAC, guest, address, 0), unix.ETH_P_8021Q, 8)),
		} {
			must(t, l.guest.in.SendFrame(l.guest.name, frame))
			must(t, l.atNeighbour.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, frame) }))
		}
		for _, frame := range [][]byte{
			outer(udp(l.neighbourMAC, l.guestMAC, address, guest, 0)),
			outer(arp(l.neighbourMAC, broadcast, 2, l.neighbourMAC, address, broadcast, address)),
			outer(packet.NeighbourMessage(advertisement, l.neighbourMAC, allNodesMAC, ours, allNodes, ours, l.neighbourMAC)),
			outer(tag(udp(l.neighbourMAC, l.guestMAC, address, guest, 0), unix.ETH_P_8021Q, 8)),
		} {
			must(t, l.neighbour.in.SendFrame(l.neighbour.name, frame))
			must(t, l.atGuest.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data, frame) }))
		}
	}
	mustServe(t, pod, guestAddress(podnet.Bridge))
	frames, err := endpointHeard.Stop()
	must(t, err)
	for _, frame := range frames {
		if kind := frame.Data[12]; !frame.Outgoing && (kind == 0x81 || kind == 0x88) {
			t.Errorf("the endpoint got %v", frame)
		}
	}
}

// A priority tag is no VLAN: the guest behind it is served, and a neighbour is
// not believed.
func TestPriorityTagIsNoVLAN(t *testing.T) {
	requireIPv6(t)
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	l := newLink(t, pod)
	question := tag(packet.NeighbourMessage(solicitation, l.guestMAC, groupMAC, l.guestAddr, group, ours, l.guestMAC), unix.ETH_P_8021Q, 0)
	must(t, l.guest.in.SendFrame(l.guest.name, question))
	must(t, l.atGuest.Wait(t.Context(), func(f podnet.Frame) bool {
		return !f.Outgoing && f.ConcernsMetadata() && bytes.Equal(f.Data[6:12], wiring.DeviceMAC)
	}))
	l.send(t, l.neighbour, tag(packet.NeighbourMessage(advertisement, l.neighbourMAC, allNodesMAC, l.neighbourAddr, allNodes, ours, l.neighbourMAC), unix.ETH_P_8021Q, 0))
	frames, err := l.atGuest.Stop()
	must(t, err)
	for _, frame := range frames {
		if !frame.Outgoing && frame.ConcernsMetadata() && !bytes.Equal(frame.Data[6:12], wiring.DeviceMAC) {
			t.Errorf("the guest got %v", frame)
		}
	}
}

// A hostile guest speaks as router, querier and neighbour to the endpoint. The pod
// gets no address, route or neighbour from it, and says nothing but what a guest
// needs.
func TestHostileGuestChangesNothingInThePod(t *testing.T) {
	requireIPv6(t)
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			pod := newPod(t, options)
			p := start(t, pod, onThisKernel)
			p.waitFor(t, "endpoint ready")
			serve(t, pod)
			must(t, pod.Wire())
			must(t, pod.StartGuest())
			l := newLink(t, pod)
			p.waitFor(t, "msg=wired")
			mustServe(t, pod, guestOf(options))
			before := snapshot(t, pod)

			query := slices.Concat([]byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}, []byte{130, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 16), []byte{2, 0, 0, 0})
			redirect := slices.Concat([]byte{137, 0, 0, 0, 0, 0, 0, 0}, l.guestAddr.AsSlice(), podnet.NeighbourIPv6Addr.AsSlice())
			for _, to := range []struct {
				mac  net.HardwareAddr
				addr netip.Addr
			}{{allNodesMAC, allNodes}, {wiring.DeviceMAC, allNodes}, {wiring.DeviceMAC, ours}} {
				for _, frame := range [][]byte{
					packet.ICMPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, advertisedRouter),
					behindOptions(packet.ICMPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, advertisedRouter)),
					fragment(packet.ICMPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, advertisedRouter), 0),
					tag(packet.ICMPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, advertisedRouter), unix.ETH_P_8021Q, 0),
					packet.ICMPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, redirect),
					packet.IPv6(l.guestMAC, to.mac, l.guestAddr, to.addr, unix.IPPROTO_HOPOPTS, query),
					packet.NeighbourMessage(advertisement, l.guestMAC, to.mac, l.guestAddr, to.addr, ours, l.guestMAC),
				} {
					must(t, l.guest.in.SendFrame(l.guest.name, frame))
				}
			}
			mustServe(t, pod, guestOf(options))
			if after := snapshot(t, pod); !slices.Equal(before.state, after.state) {
				t.Errorf("before %q\nafter %q", before.state, after.state)
			}
			frames, err := l.atGuest.Stop()
			must(t, err)
			for _, frame := range frames {
				if fromEndpoint := bytes.Equal(frame.Data[6:12], wiring.DeviceMAC); fromEndpoint && !isOfUse(frame) {
					t.Errorf("the endpoint says to the guest: %v", frame)
				}
			}
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init found something to do: %q", lines)
			}
		})
	}
}

// isOfUse says whether a guest needs this frame of the endpoint: ARP, IPv4, TCP
// over IPv6 and neighbour discovery.
func isOfUse(frame podnet.Frame) bool {
	const next, message = 14 + 6, 14 + 40
	switch kind := uint16(frame.Data[12])<<8 | uint16(frame.Data[13]); kind {
	case unix.ETH_P_ARP, unix.ETH_P_IP:
		return true
	case unix.ETH_P_IPV6:
		return frame.Data[next] == unix.IPPROTO_TCP ||
			frame.Data[next] == unix.IPPROTO_ICMPV6 && (frame.Data[message] == solicitation || frame.Data[message] == advertisement)
	}
	return false
}
