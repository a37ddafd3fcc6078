package main

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

var bindings = []podnet.Options{
	{Binding: podnet.Masquerade},
	{Binding: podnet.Masquerade, Ports: []uint16{22}},
	{Binding: podnet.Bridge},
	{Binding: podnet.ManagedTap},
}

// A neighbour that is not answered waits for as long as it likes; this is
// enough for an answer to come, were there one.
const neighbourPatience = time.Second

// The neighbour on the pod's network asks for the token: by ARP, and by
// sending straight to each MAC that the pod has. With a route from the pod
// back to the neighbour too, which bridge binding lacks by itself.
func TestNeighbourGetsNoAnswer(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, options)
			if options.Binding != podnet.Masquerade {
				routeToNeighbour(t, pod)
			}
			uplink := "eth0"
			if options.Binding != podnet.Masquerade {
				uplink = "eth0-nic"
			}
			ways := map[string]net.HardwareAddr{
				"by ARP":                nil,
				"by the endpoint's MAC": wiring.DeviceMAC,
				"by its port's MAC":     wiring.PortMAC,
				"by the bridge's MAC":   mac(t, pod.Pod, "k6t-eth0"),
				"by the uplink's MAC":   mac(t, pod.Pod, uplink),
				"by the guest's MAC":    mac(t, pod.Guest, "eth0"),
				"by broadcast":          {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
			}
			heard, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
			must(t, err)
			for way, to := range ways {
				ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
				reply, err := pod.NeighbourAsks(ctx, to)
				cancel()
				must(t, err)
				if reply.Outcome != podnet.NoAnswer {
					t.Errorf("neighbour that asks %s: %v", way, reply)
				}
				if !pod.SpeaksIPv6() {
					continue
				}
				ctx, cancel = context.WithTimeout(t.Context(), neighbourPatience)
				reply, err = pod.NeighbourAsksIPv6(ctx, to)
				cancel()
				must(t, err)
				if reply.Outcome != podnet.NoAnswer {
					t.Errorf("neighbour that asks over IPv6 %s: %v", way, reply)
				}
			}
			frames, err := heard.Stop()
			must(t, err)
			for _, frame := range frames {
				if frame.ConcernsMetadata() && !frame.Outgoing {
					t.Errorf("the pod answered the neighbour: %v", frame)
				}
			}
			mustServe(t, pod, guestAddress(options.Binding))
		})
	}
}

// routeToNeighbour lets the pod of bridge binding reach the pod network by
// its bridge, as a CNI plugin or an operator's mistake could.
func routeToNeighbour(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	bridge, err := pod.Pod.Netlink().LinkByName("k6t-eth0")
	must(t, err)
	must(t, pod.Pod.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: bridge.Attrs().Index, Scope: unix.RT_SCOPE_LINK,
		Dst: &net.IPNet{IP: podnet.NeighbourAddr.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
}

func mac(t *testing.T, n *podnet.Namespace, name string) net.HardwareAddr {
	t.Helper()
	address, err := n.MAC(name)
	must(t, err)
	return address
}

// A neighbour, or the gateway itself, that takes the address for itself is not
// believed: a guest would take a false token from it, and with cloud-init a
// false user-data.
func TestImpostorIsNotBelieved(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, options)
			impostor, err := pod.Impersonate(t.Context())
			must(t, err)
			for range 20 {
				forgetNeighbours(t, pod.Guest)
				mustServe(t, pod, guestAddress(options.Binding))
			}
			must(t, impostor.Stop())
			if n := impostor.Requests(); n != 0 {
				t.Errorf("%d requests of the guest came to the impostor", n)
			}
		})
	}
}

func forgetNeighbours(t *testing.T, n *podnet.Namespace) {
	t.Helper()
	nic, err := n.Netlink().LinkByName("eth0")
	must(t, err)
	entries, err := n.Netlink().NeighList(nic.Attrs().Index, netlink.FAMILY_ALL)
	must(t, err)
	for _, entry := range entries {
		if entry.State&netlink.NUD_NOARP == 0 && entry.Family != unix.AF_BRIDGE {
			must(t, n.Netlink().NeighDel(&entry))
		}
	}
}

// From before the bridge is there until after the guest was served by its
// default route and on-link, no frame of ours is on the pod's network: no ARP
// for the address, no packet from or to it, nothing with a MAC of ours.
func TestNothingOfOursIsOnTheUplink(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod := newPod(t, options)
			uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
			must(t, err)
			p := start(t, pod, onThisKernel)
			p.waitFor(t, "endpoint ready")
			serve(t, pod)
			must(t, pod.Wire())
			must(t, pod.StartGuest())
			p.waitFor(t, "msg=wired")
			mustServe(t, pod, guestAddress(options.Binding))
			onLink(t, pod)
			forgetNeighbours(t, pod.Guest)
			mustServe(t, pod, guestAddress(options.Binding))
			pingGateway(t, pod)

			frames, err := uplink.Stop()
			must(t, err)
			if len(frames) == 0 {
				t.Fatal("the capture saw nothing at all, so it proves nothing")
			}
			for _, frame := range frames {
				if frame.ConcernsMetadata() {
					t.Errorf("on the uplink: %v", frame)
				}
			}
		})
	}
}

// Beyond the pod 169.254.169.254 may be the metadata service of the node, with
// the node's credentials. A question that finds no endpoint, because somebody
// has deleted it and nobody is there to repair it, stays in the pod.
func TestQuestionWithoutEndpointStaysInThePod(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, p := servedPod(t, options)
			p.kill()
			deleteAddress(t, pod, netlink.FAMILY_ALL)
			uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
			must(t, err)
			if answer, err := ask(pod); err == nil {
				t.Errorf("guest was answered %q", answer)
			}
			if answer, err := askIPv6(pod, "eth0"); err == nil {
				t.Errorf("guest was answered %q over IPv6", answer)
			}
			ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
			defer cancel()
			if conn, err := pod.Pod.Dial(ctx, "tcp", endpoint); err == nil {
				t.Errorf("the pod itself was answered by %s", conn.RemoteAddr())
			}
			pingGateway(t, pod)
			frames, err := uplink.Stop()
			must(t, err)
			for _, frame := range frames {
				if frame.ConcernsMetadata() {
					t.Errorf("on the uplink: %v", frame)
				}
			}
		})
	}
}

// onLink gives the guest a route to the address on its own NIC, as cloud-init
// and Windows do.
func onLink(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	nic, err := pod.Guest.Netlink().LinkByName("eth0")
	must(t, err)
	must(t, pod.Guest.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: nic.Attrs().Index, Scope: unix.RT_SCOPE_LINK,
		Dst: &net.IPNet{IP: wiring.Address.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
}

// pingGateway makes traffic of the guest's own on the uplink: a connection
// that the neighbour refuses.
func pingGateway(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := pod.Guest.Dial(ctx, "tcp", podnet.NeighbourAddr.String()+":9")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("guest does not reach its neighbour any more: %v", err)
	}
}

// A neighbour that sends with the endpoint's MAC or address neither draws the
// guest's questions to itself nor gets a word of its own through to the guest.
func TestNeighbourThatSpoofsTheEndpoint(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Bridge, podnet.ManagedTap} {
		t.Run(string(binding), func(t *testing.T) {
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			guest, own := mac(t, pod.Guest, "eth0"), mac(t, pod.Neighbour, podnet.NeighbourInterface)
			to, address := podnet.PodAddr.AsSlice(), wiring.Address.Addr().AsSlice()
			broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
			nic, err := podnet.Capture(pod.Guest, "eth0")
			must(t, err)
			spoofed := [][]byte{
				udp(wiring.DeviceMAC, guest, podnet.NeighbourAddr.AsSlice(), to, 0),
				udp(wiring.DeviceMAC, broadcast, podnet.NeighbourAddr.AsSlice(), to, 0),
				udp(wiring.PortMAC, guest, podnet.NeighbourAddr.AsSlice(), to, 0),
				udp(own, guest, address, to, 0),
				udp(wiring.DeviceMAC, guest, address, to, 0),
				arp(own, guest, 2, own, address, guest, to),
				arp(own, broadcast, 1, own, address, make([]byte, 6), to),
				arp(own, broadcast, 1, wiring.DeviceMAC, address, make([]byte, 6), address),
				arp(wiring.DeviceMAC, guest, 2, wiring.DeviceMAC, address, guest, to),
			}
			for _, frame := range spoofed {
				sendFrames(t, pod.Neighbour, podnet.NeighbourInterface, frame)
				sendFrames(t, pod.Neighbour, podnet.NeighbourInterface, prioritized(frame))
			}
			// The last frame is one that the guest does see: then it has
			// seen all that it will of those before.
			last := udp(own, guest, podnet.NeighbourAddr.AsSlice(), to, 0)
			sendFrames(t, pod.Neighbour, podnet.NeighbourInterface, last)
			must(t, nic.Wait(t.Context(), func(f podnet.Frame) bool { return bytes.Equal(f.Data[:len(last)], last) }))
			frames, err := nic.Stop()
			must(t, err)
			for _, frame := range spoofed {
				for _, frame := range [][]byte{frame, prioritized(frame)} {
					if slices.ContainsFunc(frames, func(f podnet.Frame) bool { return bytes.HasPrefix(f.Data, frame) }) {
						t.Errorf("the guest got %x", frame)
					}
				}
			}
			mustServe(t, pod, guestAddress(binding))
		})
	}
}
