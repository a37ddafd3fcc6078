package main

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// A guest that asks from an address of the pod's, which its own is in bridge
// binding, or that says it is where the bridge is, is answered by nobody or at
// its own port: the pod's own stack, with
// the sockets of virt-launcher and of other sidecars, gets no answer in its
// place.
func TestAnswersNeverReachThePodItself(t *testing.T) {
	const closed = 9
	address := wiring.Address.Addr()
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, options)
			bridge := mac(t, pod.Pod, "k6t-eth0")
			var recordings []*podnet.Recording
			for _, device := range []string{"k6t-eth0", "lo"} {
				recording, err := podnet.Capture(pod.Pod, device)
				must(t, err)
				recordings = append(recordings, recording)
			}
			asked := addressesOf(t, pod.Pod)
			for _, from := range asked {
				for _, source := range []net.HardwareAddr{mac(t, pod.Guest, "eth0"), bridge} {
					guest, endpoint := packet.Party{MAC: source, Addr: from}, packet.Party{MAC: wiring.DeviceMAC, Addr: address}
					frames := [][]byte{
						packet.SYN(guest, endpoint, 40000, 80),
						packet.SYN(guest, endpoint, 40001, closed),
						packet.UDP(guest, endpoint, 40002, closed, nil),
					}
					if from.String() != guestAddress(options.Binding) { // or it would not hear the endpoint itself
						where := packet.ARP(packet.ARPRequest, mac(t, pod.Guest, "eth0"), packet.Broadcast, guest, packet.Party{Addr: address})
						frames = slices.Insert(frames, 0, where)
					}
					for _, frame := range frames {
						must(t, pod.Guest.SendFrame("eth0", frame))
					}
				}
			}
			// What the endpoint says to those it has said when it answers one
			// that asks later.
			mustServe(t, pod, guestAddress(options.Binding))

			for _, recording := range recordings {
				frames, err := recording.Stop()
				must(t, err)
				for _, f := range frames {
					payload := packet.Payload(f.Data)
					answer := !f.Outgoing && len(payload) >= 20 && bytes.Equal(payload[12:16], address.AsSlice())
					if answer && slices.Contains(asked, netip.AddrFrom4([4]byte(payload[16:20]))) {
						t.Errorf("the pod itself was answered: %v", f)
					}
				}
			}
		})
	}
}

// addressesOf returns the pod's own IPv4 addresses, but those of the endpoint
// and of lo.
func addressesOf(t *testing.T, pod *podnet.Namespace) (addresses []netip.Addr) {
	t.Helper()
	all, err := pod.Netlink().AddrList(nil, netlink.FAMILY_V4)
	must(t, err)
	for _, a := range all {
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		if addr != wiring.Address.Addr() && !addr.IsLoopback() {
			addresses = append(addresses, addr)
		}
	}
	if len(addresses) == 0 {
		t.Fatal("the pod has no address of its own")
	}
	return addresses
}

// A guest that tells others in ARP that an address is at one of our MACs, or a
// neighbour that tells a guest so, is not heard: what is sent there would come
// to the endpoint, or find it on the wrong side of the bridge.
func TestNobodyElseNamesTheEndpointsMAC(t *testing.T) {
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	guest := packet.Party{MAC: mac(t, pod.Guest, "eth0"), Addr: podnet.PodAddr}
	neighbour := packet.Party{MAC: mac(t, pod.Neighbour, podnet.NeighbourInterface), Addr: podnet.NeighbourAddr}
	for _, side := range []struct {
		who, whom    string
		from, to     *podnet.Namespace
		nic, heardAt string
		self, other  packet.Party
	}{
		{"guest", "neighbour", pod.Guest, pod.Neighbour, "eth0", podnet.NeighbourInterface, guest, neighbour},
		{"neighbour", "guest", pod.Neighbour, pod.Guest, podnet.NeighbourInterface, "eth0", neighbour, guest},
	} {
		heard, err := podnet.Capture(side.to, side.heardAt)
		must(t, err)
		for _, ours := range []net.HardwareAddr{wiring.DeviceMAC, wiring.PortMAC} {
			lie := packet.Party{MAC: ours, Addr: side.self.Addr}
			for _, frame := range [][]byte{
				packet.ARP(packet.ARPRequest, side.self.MAC, packet.Broadcast, lie, packet.Party{Addr: side.other.Addr}),
				packet.ARP(packet.ARPReply, side.self.MAC, side.other.MAC, lie, side.other),
			} {
				must(t, side.from.SendFrame(side.nic, frame))
			}
		}
		// The last is one that is heard.
		last := packet.ARP(packet.ARPReply, side.self.MAC, side.other.MAC, side.self, side.other)
		must(t, side.from.SendFrame(side.nic, last))
		must(t, heard.Wait(t.Context(), func(f podnet.Frame) bool { return !f.Outgoing && bytes.Equal(f.Data[:len(last)], last) }))
		frames, err := heard.Stop()
		must(t, err)
		for _, f := range frames {
			if !f.Outgoing && (bytes.Contains(f.Data, wiring.DeviceMAC) || bytes.Contains(f.Data, wiring.PortMAC)) {
				t.Errorf("the %s heard of the %s: %v", side.whom, side.who, f)
			}
		}
	}
	mustServe(t, pod, guestAddress(podnet.Bridge))
}
