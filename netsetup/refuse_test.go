package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// What the guest asks for besides TCP port 80 of our addresses is refused at once, and
// reaches no listener of the pod, though one listens on every address.
func TestOnlyPort80IsOurs(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, options)
			reached := listenOnAll(t, pod)
			hosts := []string{"169.254.169.254"}
			if pod.SpeaksIPv6() {
				at, err := pod.Guest.MetadataOn("eth0")
				must(t, err)
				hosts = append(hosts, at.Addr().String())
			}
			for _, host := range hosts {
				wantRefused(t, pod.Guest, "tcp", net.JoinHostPort(host, "9000"))
				wantRefused(t, pod.Guest, "tcp", net.JoinHostPort(host, "9001")) // where nobody listens
				wantRefused(t, pod.Guest, "udp", net.JoinHostPort(host, "53"))
			}
			mustServe(t, pod, guestOf(options))
			reached(t)
		})
	}
	t.Run("passt", func(t *testing.T) {
		t.Parallel()
		pod, _ := passtPod(t, podnet.Options{Binding: podnet.Passt})
		reached := listenOnAll(t, pod)
		// passt asks for its guest, from inside the pod.
		wantRefused(t, pod.Pod, "tcp", "169.254.169.254:9000")
		wantRefused(t, pod.Pod, "tcp", redirectEndpoint)
		wantRefused(t, pod.Pod, "udp", "169.254.169.254:53")
		mustServePasst(t, pod)
		reached(t)
	})
}

// listenOnAll has other containers of the pod listen on every address: TCP at port
// 9000, UDP at port 53. What it returns fails if somebody came.
func listenOnAll(t *testing.T, pod *podnet.Pod) (nobodyCame func(*testing.T)) {
	t.Helper()
	var mu sync.Mutex
	var came []string
	note := func(who net.Addr) {
		mu.Lock()
		defer mu.Unlock()
		came = append(came, fmt.Sprint(who.Network(), " ", who))
	}
	listener, err := pod.Pod.Listen(t.Context(), "tcp", ":9000")
	must(t, err)
	var packets net.PacketConn
	must(t, pod.Pod.Do(func() (err error) {
		packets, err = net.ListenPacket("udp", ":53")
		return err
	}))
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			note(conn.RemoteAddr())
			conn.Close()
		}
	})
	done.Go(func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			note(from)
		}
	})
	t.Cleanup(func() { listener.Close(); packets.Close(); done.Wait() })
	return func(t *testing.T) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if len(came) > 0 {
			t.Errorf("these reached a listener of the pod: %q", came)
		}
	}
}

// wantRefused fails unless who asks is told at once that nobody is there.
func wantRefused(t *testing.T, from *podnet.Namespace, network, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, network, address)
	if err == nil {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err = conn.Write([]byte("question")); err == nil {
			_, err = conn.Read(make([]byte, 100))
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s %s: %v, want refused", network, address, err)
	}
}

// A neighbour is not refused but dropped: it does not learn that we are here.
func TestNeighbourIsNotRefused(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, _ := servedPod(t, options)
			for _, to := range []net.HardwareAddr{wiring.DeviceMAC, mac(t, pod.Guest, "eth0")} {
				ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
				reply, err := pod.NeighbourAsksAt(ctx, to, 9000)
				cancel()
				must(t, err)
				if reply.Outcome != podnet.NoAnswer {
					t.Errorf("neighbour that asks for port 9000 at %s: %v", to, reply)
				}
			}
		})
	}
}

// A service mesh that redirects what goes out by lo to its proxy changes neither the
// guest's way nor that of the pod's probe.
func TestPasstBesideAMeshThatRedirectsLoopback(t *testing.T) {
	pod, _ := passtPod(t, podnet.Options{Binding: podnet.Passt})
	inPod(t, pod, "nft", `add table ip mesh
add chain ip mesh output { type nat hook output priority -100; }
add rule ip mesh output oifname lo meta l4proto tcp redirect to :15001`)
	mustServePasst(t, pod)
	mustAnswerProbe(t, pod, endpoint)
	if answer, err := askFrom(pod.Pod, "127.0.0.1:8000"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the mesh redirects nothing (%q, %v), so this proves nothing", answer, err)
	}
	if rules := inPod(t, pod, "nft", "list table ip mesh"); !strings.Contains(rules, "redirect to :15001") {
		t.Errorf("the mesh has not its rule:\n%s", rules)
	}
}

// While imds-server does not listen, no other listener of the pod gets the guest's
// questions in its place.
func TestNoOtherListenerAnswersForTheServer(t *testing.T) {
	for _, options := range bindings {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod := newPod(t, options)
			p := start(t, pod, onThisKernel)
			must(t, pod.Wire())
			must(t, pod.StartGuest())
			p.waitFor(t, "msg=wired")
			vmServes(t, pod, "[::]:80")
			if answer, err := ask(pod); err == nil {
				t.Errorf("another listener answers: %q", answer)
			}
			if answer, err := askIPv6(pod, "eth0"); err == nil {
				t.Errorf("another listener answers over IPv6: %q", answer)
			}
			if answer, err := askFrom(pod.Pod, endpoint); err != nil || answer != "the VM's own service" {
				t.Errorf("it answers nobody (%q, %v), so this proves nothing", answer, err)
			}
		})
	}
}

// Frames of another network with the same address pass a pod of passt, also where the
// node hands those of a bridge to the rules of the ip family.
func TestPasstLeavesOtherNetworksAlone(t *testing.T) {
	on := true
	pod, _ := passtPod(t, podnet.Options{Binding: podnet.Passt, BridgeNetfilter: &on})
	left, right := netlink.NewVeth(netlink.LinkAttrs{Name: "left"}), netlink.NewVeth(netlink.LinkAttrs{Name: "right"})
	left.PeerName, right.PeerName = "left0", "right0"
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "k6t-other"}}
	handle := pod.Pod.Netlink()
	for _, l := range []netlink.Link{left, right, bridge} {
		must(t, handle.LinkAdd(l))
	}
	for _, name := range []string{"left0", "right0"} {
		must(t, handle.LinkSetMaster(link(t, pod, name), link(t, pod, "k6t-other")))
	}
	for _, name := range []string{"left", "right", "left0", "right0", "k6t-other"} {
		must(t, handle.LinkSetUp(link(t, pod, name)))
	}
	heard, err := podnet.Capture(pod.Pod, "right")
	must(t, err)
	from, to := mac(t, pod.Pod, "left"), mac(t, pod.Pod, "right")
	frame := udp(from, to, []byte{198, 18, 0, 1}, podnet.MetadataAddr.AsSlice(), 0)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for { // a port forwards some time after it came up, of which no event tells
		must(t, pod.Pod.SendFrame("left", frame))
		short, end := context.WithTimeout(ctx, 100*time.Millisecond)
		err := heard.Wait(short, func(f podnet.Frame) bool { return !f.Outgoing && bytes.HasPrefix(f.Data, frame) })
		end()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("the frame does not pass")
		}
	}
}

// An ICMP error that says how long a packet may be on the way to a container is heard.
func TestICMPErrorsAboutAnswersAreHeard(t *testing.T) {
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	guest := mac(t, pod.Guest, "eth0")
	about := slices.Concat([]byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0}, podnet.MetadataAddr.AsSlice(), podnet.PodAddr.AsSlice(), []byte{0, 80, 0x9c, 0x40, 0, 0, 0, 1})
	message := slices.Concat([]byte{3, 4, 0, 0, 0, 0, 0x05, 0x00}, about) // fragmentation needed, 1280 (RFC 1191)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	const rule = "ip prerouting, accept ICMP errors about answers"
	before := counters(t, pod)[rule]
	sendFrames(t, pod.Guest, "eth0", ipv4(guest, wiring.DeviceMAC, unix.IPPROTO_ICMP, podnet.PodAddr.AsSlice(), podnet.MetadataAddr.AsSlice(), 0, message))
	mustServe(t, pod, guestAddress(podnet.Bridge))
	if after := counters(t, pod)[rule]; after == before {
		t.Error("it was not")
	}
}

// A solicitation is answered whether the sender's MAC is its first option or its second.
func TestSolicitationWithMoreOptions(t *testing.T) {
	requireIPv6(t)
	pod, _ := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	l := newLink(t, pod)
	nonce, source := []byte{14, 1, 1, 2, 3, 4, 5, 6}, slices.Concat([]byte{1, 1}, l.guestMAC)
	for _, options := range [][]byte{slices.Concat(nonce, source), slices.Concat(source, nonce), source, nonce} {
		message := slices.Concat([]byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, ours.AsSlice(), options)
		heard, err := podnet.Capture(pod.Guest, "eth0")
		must(t, err)
		must(t, pod.Guest.SendFrame("eth0", packet.ICMPv6(l.guestMAC, groupMAC, l.guestAddr, group, message)))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		err = heard.Wait(ctx, func(f podnet.Frame) bool {
			return !f.Outgoing && len(f.Data) > 54 && bytes.Equal(f.Data[6:12], wiring.DeviceMAC) && f.Data[54] == advertisement
		})
		cancel()
		if err != nil {
			t.Errorf("options % x: no advertisement: %v", options, err)
		}
		heard.Stop()
	}
}
