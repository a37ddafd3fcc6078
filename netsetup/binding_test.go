package main

import (
	"bytes"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// A bridge without a MAC of its own takes the lowest of its ports'. Here all
// of them are as high as random MACs get, but the endpoint's is higher.
func TestBridgeKeepsItsMAC(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
	must(t, pod.Wire())
	high := net.HardwareAddr{0xfe, 0xf0, 0x00, 0x00, 0x00, 0x00}
	for i, port := range []string{"eth0-nic", "tap0"} {
		high[5] = byte(i)
		must(t, pod.Pod.Netlink().LinkSetHardwareAddr(link(t, pod, port), high))
	}
	before := mac(t, pod.Pod, "k6t-eth0")
	p := start(t, pod, onThisKernel)
	p.waitFor(t, "msg=wired")
	if after := mac(t, pod.Pod, "k6t-eth0"); !bytes.Equal(before, after) {
		t.Errorf("the bridge had MAC %s and has now %s", before, after)
	}
}

// The guest's gateway in masquerade is the bridge. A second answer to the ARP
// request for it would take the guest's default route to the endpoint.
func TestGatewayIsAnsweredForByTheBridgeAlone(t *testing.T) {
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Masquerade})
	nic, err := podnet.Capture(pod.Guest, "eth0")
	must(t, err)
	for range 5 {
		forgetNeighbours(t, pod.Guest)
		pingGateway(t, pod)
		mustServe(t, pod, guestAddress(podnet.Masquerade))
	}
	frames, err := nic.Stop()
	must(t, err)
	answers := 0
	for _, frame := range frames {
		if sender, ok := arpAnswerFor(frame, podnet.MasqueradeGateway.AsSlice()); ok {
			answers++
			if want := mac(t, pod.Pod, "k6t-eth0"); !bytes.Equal(sender, want) {
				t.Errorf("the gateway is said to be at %s, but is at %s", sender, want)
			}
		}
	}
	if answers == 0 {
		t.Error("nobody answered for the gateway, so this proves nothing")
	}
}

// arpAnswerFor returns the MAC that an incoming ARP reply (RFC 826) gives to
// an address.
func arpAnswerFor(frame podnet.Frame, address net.IP) (net.HardwareAddr, bool) {
	const header, reply = 14, 2
	d := frame.Data
	if frame.Outgoing || len(d) < header+28 || d[12] != 0x08 || d[13] != 0x06 || d[header+7] != reply {
		return nil, false
	}
	return d[header+8 : header+14], bytes.Equal(d[header+14:header+18], address)
}

// The bridge that the user names is taken though it comes later, and though
// another one is there first.
func TestBridgeNamedByTheUser(t *testing.T) {
	const secondary = "pod16477688c0e"
	pod := newPod(t, podnet.Options{Binding: podnet.Masquerade})
	p := start(t, pod, onThisKernel, "IMDS_BRIDGE_NAME=k6t-16477688c0e")
	p.waitFor(t, `missing="a bridge named k6t-16477688c0e"`)
	serve(t, pod)
	must(t, pod.Wire())
	must(t, pod.StartGuest())
	must(t, pod.AddSecondaryBridge(secondary))
	p.waitFor(t, "msg=wired bridge=k6t-16477688c0e guests=tap16477688c0e uplinks=16477688c0e-nic")
	routeBy(t, pod, "eth1", "10.245.1.9")
	mustServeIPv4(t, pod, "10.245.1.9")
	if pod.SpeaksIPv6() {
		mustServeIPv6(t, pod, "eth1")
	}
}

// routeBy gives a NIC of the guest an address that the pod knows nothing of,
// and sends the questions out there.
func routeBy(t *testing.T, pod *podnet.Pod, name, address string) {
	t.Helper()
	nic, err := pod.Guest.Netlink().LinkByName(name)
	must(t, err)
	addr, err := netlink.ParseAddr(address + "/24")
	must(t, err)
	must(t, pod.Guest.Netlink().AddrReplace(nic, addr))
	must(t, pod.Guest.Netlink().LinkSetUp(nic))
	must(t, pod.Guest.Netlink().RouteReplace(&netlink.Route{
		LinkIndex: nic.Attrs().Index, Scope: unix.RT_SCOPE_LINK, Src: addr.IP,
		Dst: &net.IPNet{IP: wiring.Address.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
}

// In bridge binding the pod has no route at all, and on a secondary network
// the guest's address is not the pod's: nothing in the pod tells where its
// packets come from.
func TestGuestWhoseAddressThePodHasNoRouteTo(t *testing.T) {
	for _, rpFilter := range []int{0, 1, 2} {
		pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge, RPFilter: rpFilter})
		routeBy(t, pod, "eth0", "192.0.2.77")
		mustServe(t, pod, "192.0.2.77")
	}
}
