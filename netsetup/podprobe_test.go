package main

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// probe127 asks from 127.0.0.1, as imds-server's own probe does, at the address
// that the guest asks at.
func probe127(t *testing.T, n *podnet.Namespace, address string) (answer string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var conn net.Conn
	err = n.Do(func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
		conn, err = dialer.DialContext(ctx, "tcp4", address)
		return err
	})
	if err != nil {
		return "", err
	}
	return converse(conn)
}

func mustAnswerProbe(t *testing.T, pod *podnet.Pod, address string) {
	t.Helper()
	if answer, err := probe127(t, pod.Pod, address); err != nil || answer != "endpoint saw 127.0.0.1" {
		t.Errorf("the pod's probe is answered %q, %v", answer, err)
	}
}

// The server is bound to the endpoint's device and sees the pod's own probe
// come from 127.0.0.1, by which it tells it from the guest, in every binding.
func TestPodsProbeIsAnswered(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge, podnet.ManagedTap} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			pod, p := servedPod(t, podnet.Options{Binding: binding})
			mustAnswerProbe(t, pod, endpoint)

			deleteLoopbackRoute(t, pod)
			p.waitFor(t, "msg=repaired")
			mustAnswerProbe(t, pod, endpoint)
		})
	}
	t.Run("passt", func(t *testing.T) {
		t.Parallel()
		pod, _ := passtPod(t, podnet.Options{})
		mustAnswerProbe(t, pod, endpoint)
	})
}

func deleteLoopbackRoute(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	must(t, pod.Pod.Netlink().RouteDel(&netlink.Route{
		LinkIndex: link(t, pod, wiring.Device).Attrs().Index, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Table: 0xa9fea9fd, Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
	}))
}

// A guest that takes 127.0.0.1 for its own address is not taken for the pod's
// probe, and hears nothing, even in a pod where somebody has route_localnet on
// everywhere: the answers to that address stay in the pod.
func TestGuestCannotPlayThePodsProbe(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		for _, routeLocalnet := range []string{"0", "1"} {
			t.Run(string(binding)+" route_localnet="+routeLocalnet, func(t *testing.T) {
				pod, _ := servedPod(t, podnet.Options{Binding: binding})
				for _, n := range []*podnet.Namespace{pod.Pod, pod.Guest} {
					value := routeLocalnet
					if n == pod.Guest {
						value = "1"
					}
					must(t, n.Sysctl("net.ipv4.conf.all.route_localnet", value))
				}
				routeBy(t, pod, "eth0", "127.0.0.9")
				nic, err := podnet.Capture(pod.Guest, "eth0")
				must(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), 2*neighbourPatience)
				defer cancel()
				if conn, err := pod.Guest.Dial(ctx, "tcp", endpoint); err == nil {
					t.Errorf("the guest has a conversation from %s", conn.LocalAddr())
				}
				frames, err := nic.Stop()
				must(t, err)
				asked := 0
				for _, frame := range frames {
					switch {
					case isSYN(frame) && net.IP(frame.Data[26:30]).IsLoopback():
						asked++
					case frame.ConcernsMetadata() && !frame.Outgoing && frame.Data[12] == 0x08 && frame.Data[13] == 0x00:
						t.Errorf("the guest got %v", frame)
					}
				}
				if asked == 0 {
					t.Error("the guest did not even ask from that address, so this proves nothing")
				}
			})
		}
	}
}
