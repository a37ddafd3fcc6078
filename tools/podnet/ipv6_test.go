package podnet

import (
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// requireIPv6 skips where the kernel has no IPv6, or fails if CI=true.
func requireIPv6(t *testing.T) {
	t.Helper()
	if HasIPv6() {
		return
	}
	const why = "this kernel has no IPv6: start it without ipv6.disable=1"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func TestGuestOfMasqueradeReachesNeighbourOverIPv6(t *testing.T) {
	requireIPv6(t)
	for _, options := range []Options{{}, {GuestWithoutIPv4: true}, {Ports: []uint16{22}}} {
		p := runningPod(t, options)
		serve(t, p.Neighbour, "[fd00:10:244::1]:80")
		mustGet(t, p.Guest, "http://[fd00:10:244::1]/", "fd00:10:244::5")
	}
}

func TestNeighbourReachesGuestOfMasqueradeOverIPv6(t *testing.T) {
	requireIPv6(t)
	p := runningPod(t, Options{})
	serve(t, p.Guest, "[::]:8080")
	mustGet(t, p.Neighbour, "http://[fd00:10:244::5]:8080/", "fd00:10:244::1")
}

func TestGuestOfBridgeHasItsLinkLocalAddress(t *testing.T) {
	requireIPv6(t)
	p := runningPod(t, Options{Binding: Bridge})
	serve(t, p.Neighbour, "[fd00:10:244::1]:80")
	if _, err := p.Guest.LinkLocal("eth0"); err != nil {
		t.Error(err)
	}
}

func TestGuestWithoutIPv4(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge, GuestWithoutIPv4: true})
	if got := addrs(t, p.Guest, "eth0"); got != "" {
		t.Errorf("the guest has %s", got)
	}
}

func TestPodWithoutIPv6(t *testing.T) {
	requireIPv6(t)
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b, WithoutIPv6: true})
		for _, name := range []string{"k6t-eth0", "tap0", "lo"} {
			if addr, err := p.Pod.LinkLocal(name); err == nil {
				t.Errorf("%s has %s", name, addr)
			}
		}
		serve(t, p.Neighbour, "10.244.1.1:80")
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	})
}

// The attacks over IPv6 succeed too where nothing guards the pod.
func TestNeighbourIsAnsweredOverIPv6ByAnUnprotectedPod(t *testing.T) {
	requireIPv6(t)
	for _, forced := range []bool{false, true} {
		p := runningPod(t, Options{Ports: []uint16{22}})
		eth0, err := p.Pod.link("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Pod.assign(eth0, netip.PrefixFrom(MetadataIPv6Addr, 64)); err != nil {
			t.Fatal(err)
		}
		serve(t, p.Pod, "[::]:80")
		mac := eth0.Attrs().HardwareAddr
		if !forced {
			mac = nil
		}
		reply, err := p.NeighbourAsksIPv6(within(t, 10*time.Second), mac)
		if err != nil {
			t.Fatal(err)
		}
		if reply.Outcome != Answered || reply.Status != http.StatusOK {
			t.Errorf("with the pod's MAC %t: %+v", forced, reply)
		}
	}
}

func TestImpostorIsBelievedOverIPv6ByTheGuestOfAnUnprotectedPod(t *testing.T) {
	requireIPv6(t)
	p := runningPod(t, Options{Binding: Bridge})
	recording, err := Capture(p.Guest, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := p.Impersonate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	url, err := p.Guest.MetadataURL("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mustGet(t, p.Guest, url+"/v1/token", ImpostorBody)
	for _, to := range []string{"33:33:00:00:00:01", p.primary.guestMAC.String()} {
		if err := recording.Wait(within(t, 10*time.Second), func(f Frame) bool {
			return f.ConcernsMetadata() && strings.Contains(f.String(), "> "+to+", ethertype 0x86dd")
		}); err != nil {
			t.Errorf("no false advertisement to %s: %v", to, err)
		}
	}
	if err := impostor.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := recording.Stop(); err != nil {
		t.Error(err)
	}
}

func TestCapturedFrameHasItsVLANTag(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge})
	recording, err := Capture(p.Guest, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	up, err := p.Neighbour.link(NeighbourInterface)
	if err != nil {
		t.Fatal(err)
	}
	frame := packet.IPv6(up.Attrs().HardwareAddr, allNodesMAC, NeighbourIPv6Addr, allNodes, 59, make([]byte, 40))
	frame = slices.Concat(frame[:12], []byte{0x81, 0, 0xe0, 7}, frame[12:])
	err = p.Neighbour.SendFrame(NeighbourInterface, frame)
	if err != nil {
		t.Fatal(err)
	}
	if err := recording.Wait(within(t, 10*time.Second), func(f Frame) bool { return slices.Equal(f.Data, frame) }); err != nil {
		t.Errorf("%v: want %x among %v", err, frame, recording.Frames())
	}
	if _, err := recording.Stop(); err != nil {
		t.Error(err)
	}
}
