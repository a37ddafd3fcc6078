package podnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRoutedNetwork(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b, Network: Routed})
		if got := addrs(t, p.Pod, "eth0"); got != "10.244.1.5/32" {
			t.Errorf("addresses of the pod's eth0: %s", got)
		}
		if b != Masquerade {
			want := "169.254.1.1/32 by eth0; default via 169.254.1.1 by eth0"
			if got := routes(t, p.Guest); got != want {
				t.Errorf("the guest's routes: %s, want %s", got, want)
			}
		}
		serve(t, p.Neighbour, "10.244.1.1:80")
		serve(t, p.Guest, ":8080")
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
		mustGet(t, p.Neighbour, "http://10.244.1.5:8080/", "10.244.1.1")
	})
}

// Whoever asks the node of a routed network for the metadata address is told
// that it is there.
func TestNodeOfARoutedNetworkAnswersForTheMetadataAddress(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge, Network: Routed})
	nic, err := Capture(p.Guest, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	guest, err := p.Guest.link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Guest.routeOnLink(guest, netip.PrefixFrom(MetadataAddr, 32)); err != nil {
		t.Fatal(err)
	}
	get(t, p.Guest, "http://169.254.169.254/") // which the node cannot hand on
	err = nic.Wait(within(t, carrierLimit), func(f Frame) bool {
		return !f.Outgoing && bytes.Equal(f.source(), calicoMAC) && f.ConcernsMetadata()
	})
	if err != nil {
		t.Errorf("no answer of %s: %v", calicoMAC, err)
	}
	if _, err := nic.Stop(); err != nil {
		t.Error(err)
	}
}

func TestLayer2Network(t *testing.T) {
	for _, b := range []Binding{Bridge, ManagedTap} {
		t.Run(string(b), func(t *testing.T) {
			p := runningPod(t, Options{Binding: b, Network: Layer2, NoPodNetwork: true, PrimaryInterface: "pod37a8eec1ce1"})
			if got := routes(t, p.Pod); got != "" {
				t.Errorf("the pod's routes: %s", got)
			}
			for _, name := range []string{"pod37a8eec1ce1", "k6t-37a8eec1ce1"} {
				if got := addrs(t, p.Pod, name); got != "" {
					t.Errorf("addresses of the pod's %s: %s", name, got)
				}
			}
			if got := ports(t, p.Pod, "k6t-37a8eec1ce1"); got != "37a8eec1ce1-nic tap37a8eec1ce1" {
				t.Errorf("ports: %s", got)
			}
			if got := routes(t, p.Guest); got != "" {
				t.Errorf("the guest's routes: %s", got)
			}
			// As a guest does that is given no address.
			nic, err := p.Guest.link("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Guest.assign(nic, netip.MustParsePrefix("10.245.0.77/24")); err != nil {
				t.Fatal(err)
			}
			serve(t, p.Neighbour, "10.245.0.1:80")
			mustGet(t, p.Guest, "http://10.245.0.1/", "10.245.0.77")
		})
	}
}

func TestPodNetworkWithoutTheVM(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge, NoPodNetwork: true, Bystander: true, PrimaryInterface: "pod37a8eec1ce1"})
	serve(t, p.Neighbour, ":80")
	serve(t, p.Pod, "10.244.1.5:80")
	mustGet(t, p.Guest, "http://10.245.0.1/", "10.245.0.5")
	mustGet(t, p.Pod, "http://10.244.1.1/", "10.244.1.5")
	mustGet(t, p.Neighbour, "http://10.244.1.5/", "10.244.1.1")
}

func TestNeighbourAsksByTheBystander(t *testing.T) {
	p := newPod(t, Options{Binding: Bridge, NoPodNetwork: true, Bystander: true, PrimaryInterface: "pod37a8eec1ce1"})
	unprotectedService(t, p, true)
	reply, err := p.NeighbourAsksBy(within(t, 10*time.Second), BystanderInterface, nil)
	if err != nil || reply.Body != "10.244.1.1" {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestNetworksThatNoBindingHas(t *testing.T) {
	for want, options := range map[string]Options{
		"bystander: ":               {Bystander: true},
		`network "ovn"`:             {Network: "ovn"},
		"masquerade: it is for the": {Network: Layer2},
		"which has an address":      {NoPodNetwork: true, PrimaryInterface: "pod37a8eec1ce1"},
		"have no part in":           {NoPodNetwork: true, Network: Routed, Binding: Bridge},
		`interface "eth0"`:          {NoPodNetwork: true, Binding: Bridge},
	} {
		if _, err := New(options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error about %s", options, err, want)
		}
	}
}

// routes are those of the main table that no address has made, the default
// route last.
func routes(t *testing.T, n *Namespace) string {
	t.Helper()
	list, err := n.netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var others, defaults []string
	for _, r := range list {
		if r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		link, err := n.netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			t.Fatal(err)
		}
		if ones, _ := r.Dst.Mask.Size(); ones == 0 {
			defaults = append(defaults, fmt.Sprintf("default via %s by %s", r.Gw, link.Attrs().Name))
		} else {
			others = append(others, fmt.Sprintf("%s by %s", r.Dst, link.Attrs().Name))
		}
	}
	return strings.Join(append(others, defaults...), "; ")
}
