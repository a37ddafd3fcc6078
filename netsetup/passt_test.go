package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	redirectPort     = 60080
	redirectTo       = "IMDS_REDIRECT_PORT=60080"
	redirectEndpoint = "169.254.169.254:60080"
)

// passtPod is a pod of a VM whose pod network is bound by passt: no link is
// there but the pod's own, and a process in the pod has the VM's port 80, on
// every address, before anything of ours is there.
func passtPod(t *testing.T, options podnet.Options, env ...string) (*podnet.Pod, *imdsInit) {
	t.Helper()
	options.Binding = podnet.Passt
	pod := newPod(t, options)
	vmServes(t, pod, "[::]:80")
	p := start(t, pod, onThisKernel, append(env, redirectTo)...)
	p.waitFor(t, "msg=wired binding=passt port=60080")
	serveAt(t, pod, redirectEndpoint)
	mustServePasst(t, pod)
	return pod, p
}

// vmServes is passt's half of a service of the VM: an ordinary listener in
// the pod.
func vmServes(t *testing.T, pod *podnet.Pod, address string) {
	t.Helper()
	listener, err := pod.Pod.Listen(t.Context(), "tcp", address)
	must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the VM's own service")
	})}
	var done sync.WaitGroup
	done.Go(func() { server.Serve(listener) })
	t.Cleanup(func() { server.Close(); done.Wait() })
}

// askFrom asks at an address from a namespace, once, over a connection of its
// own. From the pod's it is what passt does for its guest.
func askFrom(n *podnet.Namespace, address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	return converse(conn)
}

func converse(conn net.Conn) (string, error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(conn, "GET /v1/token HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	_, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	return body, err
}

func mustServePasst(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	answer, err := askFrom(pod.Pod, endpoint)
	if want := "endpoint saw 169.254.169.254"; err != nil || answer != want {
		t.Fatalf("passt's guest is answered %q, %v; want %q", answer, err, want)
	}
}

// The VM keeps its own port 80, on each address at which its neighbours and its
// pod find it.
func mustKeepPort80(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	for from, n := range map[string]*podnet.Namespace{"neighbour": pod.Neighbour, "pod": pod.Pod} {
		answer, err := askFrom(n, podnet.PodAddr.String()+":80")
		if err != nil || answer != "the VM's own service" {
			t.Errorf("%s that asks the VM's port 80 is answered %q, %v", from, answer, err)
		}
	}
}

func TestPasstGuestIsServed(t *testing.T) {
	on := true
	for _, options := range []podnet.Options{
		{},
		{RPFilter: 1},
		{RPFilter: 2},
		{BridgeNetfilter: &on},
		{PrimaryInterface: "ovn-udn1"},
	} {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, p := passtPod(t, options)
			for range 3 {
				mustServePasst(t, pod)
			}
			mustKeepPort80(t, pod)
			if answer, err := askFrom(pod.Pod, "169.254.169.254:8080"); err == nil {
				t.Errorf("a port that is not ours is redirected too: %q", answer)
			}
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init found more to do in a pod that stays as it is: %q", lines)
			}
		})
	}
}

// The neighbour asks the pod for the address at the guest's port and at the
// server's. The listener here is bound to no device, as the server's is: the
// rules alone have to keep the neighbour off.
func TestPasstNeighbourGetsNoAnswer(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Passt})
	vmServes(t, pod, "[::]:80")
	p := start(t, pod, onThisKernel, redirectTo)
	p.waitFor(t, "msg=wired")
	vmServes(t, pod, redirectEndpoint)
	heard, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
	must(t, err)
	ways := map[string]net.HardwareAddr{
		"by ARP":                nil,
		"by the endpoint's MAC": wiring.DeviceMAC,
		"by its port's MAC":     wiring.PortMAC,
		"by the pod's MAC":      mac(t, pod.Pod, "eth0"),
		"by broadcast":          {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	for way, to := range ways {
		for _, port := range []uint16{80, redirectPort} {
			ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
			reply, err := pod.NeighbourAsksAt(ctx, to, port)
			cancel()
			must(t, err)
			if reply.Outcome != podnet.NoAnswer {
				t.Errorf("neighbour that asks %s at port %d: %v", way, port, reply)
			}
		}
	}
	frames, err := heard.Stop()
	must(t, err)
	for _, frame := range frames {
		if frame.ConcernsMetadata() && !frame.Outgoing {
			t.Errorf("the pod answered the neighbour: %v", frame)
		}
	}
	// At the pod's own address there is no such service.
	if answer, err := askFrom(pod.Neighbour, fmt.Sprintf("%s:%d", podnet.PodAddr, redirectPort)); err == nil {
		t.Errorf("neighbour is answered at the pod's address: %q", answer)
	}
	mustKeepPort80(t, pod)
}

// The endpoint's device is no way in either, whoever stands at its other end.
func TestPasstNobodyAsksByTheEndpointsDevice(t *testing.T) {
	pod, _ := passtPod(t, podnet.Options{})
	other, err := podnet.Capture(pod.Pod, wiring.Port)
	must(t, err)
	from, to := podnet.NeighbourAddr.AsSlice(), wiring.Address.Addr().AsSlice()
	for _, port := range []uint16{80, redirectPort} {
		sendFrames(t, pod.Pod, wiring.Port, syn(wiring.PortMAC, wiring.DeviceMAC, from, to, port))
	}
	// The last frame is answered: then all before it has been.
	sendFrames(t, pod.Pod, wiring.Port, arp(wiring.PortMAC, wiring.DeviceMAC, 1, wiring.PortMAC, from, make([]byte, 6), to))
	answered := func(f podnet.Frame) bool { return !f.Outgoing && f.ConcernsMetadata() }
	must(t, other.Wait(t.Context(), func(f podnet.Frame) bool { return answered(f) && f.Data[12] == 0x08 && f.Data[13] == 0x06 }))
	frames, err := other.Stop()
	must(t, err)
	for _, frame := range frames {
		if answered(frame) && frame.Data[13] == 0x00 {
			t.Errorf("the endpoint answers by its device: %v", frame)
		}
	}
}

// The VM's other network has a bridge, which stays as KubeVirt made it; the
// guest is not served there.
func TestPasstBesideABridge(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
	must(t, pod.Wire())
	p := start(t, pod, onThisKernel, redirectTo)
	p.waitFor(t, "msg=wired binding=passt")
	serveAt(t, pod, redirectEndpoint)
	mustServePasst(t, pod)
	if master := link(t, pod, wiring.Port).Attrs().MasterIndex; master != 0 {
		t.Errorf("%s is a port of a bridge", wiring.Port)
	}
	must(t, pod.StartGuest())
	if answer, err := ask(pod); err == nil {
		t.Errorf("the guest is answered by the bridge too: %q", answer)
	}
	pingGateway(t, pod)
}

// An endpoint that was joined to a bridge before leaves it.
func TestRedirectionPartsTheEndpointFromItsBridge(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	p.kill()
	p = start(t, pod, onThisKernel, redirectTo)
	p.waitFor(t, "msg=wired binding=passt")
	if master := link(t, pod, wiring.Port).Attrs().MasterIndex; master != 0 {
		t.Errorf("%s is still a port of a bridge", wiring.Port)
	}
	p.kill()
	p = start(t, pod, onThisKernel)
	p.waitFor(t, "msg=wired bridge=")
	mustServe(t, pod, guestAddress(podnet.Bridge))
	if answer, err := askFrom(pod.Pod, redirectEndpoint); err == nil {
		t.Errorf("the redirection is still there: %q", answer)
	}
}

func TestPasstWiringHeals(t *testing.T) {
	for accident, happen := range map[string]func(t *testing.T, pod *podnet.Pod){
		"somebody deletes the redirection": func(t *testing.T, pod *podnet.Pod) {
			changeRedirection(t, pod, func(nft *nftables.Conn, chain *nftables.Chain) { nft.DelChain(chain) })
		},
		"somebody empties the redirection": func(t *testing.T, pod *podnet.Pod) {
			changeRedirection(t, pod, func(nft *nftables.Conn, chain *nftables.Chain) { nft.FlushChain(chain) })
		},
		"somebody deletes the rules of the ip family": func(t *testing.T, pod *podnet.Pod) {
			deleteTable(t, pod, nftables.TableFamilyIPv4)
		},
		"somebody deletes the address": func(t *testing.T, pod *podnet.Pod) { deleteAddress(t, pod, netlink.FAMILY_V4) },
		"somebody deletes veth-imds":   func(t *testing.T, pod *podnet.Pod) { deleteLink(t, pod, wiring.Device) },
		"somebody sets veth-imds down": func(t *testing.T, pod *podnet.Pod) {
			must(t, pod.Pod.Netlink().LinkSetDown(link(t, pod, wiring.Device)))
		},
		"somebody joins it to a bridge": joinToBridge,
	} {
		t.Run(accident, func(t *testing.T) {
			t.Parallel()
			pod, p := passtPod(t, podnet.Options{})
			before := snapshot(t, pod)
			happen(t, pod)
			p.waitFor(t, "msg=repaired binding=passt port=60080")
			// What was compared while it happened is made right by the next comparison.
			var after podState
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				after = snapshot(t, pod)
				after.state = slices.DeleteFunc(after.state, func(s string) bool { return strings.HasPrefix(s, "link k6t-strange ") })
				if slices.Equal(before.state, after.state) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left behind:\nbefore %s\nafter  %s", strings.Join(before.state, "\n       "), strings.Join(after.state, "\n       "))
				}
			}
			if after.deviceIndex != before.deviceIndex {
				serveAt(t, pod, redirectEndpoint)
			}
			mustServePasst(t, pod)
		})
	}
}

func changeRedirection(t *testing.T, pod *podnet.Pod, change func(*nftables.Conn, *nftables.Chain)) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	table := &nftables.Table{Name: "imds", Family: nftables.TableFamilyIPv4}
	chain := &nftables.Chain{Name: "redirection", Table: table}
	nft.FlushChain(chain)
	change(nft, chain)
	must(t, nft.Flush())
}

func joinToBridge(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "k6t-strange"}}
	must(t, pod.Pod.Netlink().LinkAdd(bridge))
	must(t, pod.Pod.Netlink().LinkSetMaster(link(t, pod, wiring.Port), bridge))
}

func TestPasstKilledAndStartedAgain(t *testing.T) {
	pod, p := passtPod(t, podnet.Options{})
	before := snapshot(t, pod)
	for range 3 {
		p.kill()
		mustServePasst(t, pod)
		p = start(t, pod, onThisKernel, redirectTo)
		p.waitFor(t, "msg=wired")
		mustServePasst(t, pod)
	}
	if after := snapshot(t, pod); !slices.Equal(before.state, after.state) {
		t.Errorf("before %q\nafter %q", before.state, after.state)
	}
}

func TestPasstOnce(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Passt})
	vmServes(t, pod, "[::]:80")
	output, err := startOnce(t, pod, redirectTo)
	if err != nil || !strings.Contains(output, "msg=wired binding=passt port=60080") {
		t.Fatalf("%v, %s", err, output)
	}
	serveAt(t, pod, redirectEndpoint)
	mustServePasst(t, pod)
	mustKeepPort80(t, pod)
}

// Beyond the pod the address may be the node's metadata service: a question
// that finds no endpoint stays in the pod.
func TestPasstQuestionWithoutEndpointStaysInThePod(t *testing.T) {
	pod, p := passtPod(t, podnet.Options{})
	p.kill()
	deleteAddress(t, pod, netlink.FAMILY_V4)
	uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
	must(t, err)
	for _, address := range []string{endpoint, redirectEndpoint} {
		ctx, cancel := context.WithTimeout(t.Context(), neighbourPatience)
		if conn, err := pod.Pod.Dial(ctx, "tcp", address); err == nil {
			t.Errorf("answered by %s", conn.RemoteAddr())
		}
		cancel()
	}
	mustKeepPort80(t, pod)
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
}
