package podnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestGuestReachesNeighbour(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b})
		serve(t, p.Neighbour, "10.244.1.1:80")
		// In masquerade by NAT, otherwise as itself: the pod's address either
		// way.
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	})
}

func TestGuestOfMasqueradeReachesItsGateway(t *testing.T) {
	p := runningPod(t, Options{})
	serve(t, p.Pod, "10.0.2.1:80")
	mustGet(t, p.Guest, "http://10.0.2.1/", "10.0.2.2")
}

func TestNeighbourReachesGuest(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b})
		serve(t, p.Guest, ":8080")
		mustGet(t, p.Neighbour, "http://10.244.1.5:8080/", "10.244.1.1")
	})
}

func TestMasqueradeWithPortsLetsInOnlyThose(t *testing.T) {
	p := runningPod(t, Options{Ports: []uint16{22, 8080}})
	serve(t, p.Guest, ":8080")
	serve(t, p.Guest, ":8081")
	mustGet(t, p.Neighbour, "http://10.244.1.5:8080/", "10.244.1.1")
	if body, err := get(t, p.Neighbour, "http://10.244.1.5:8081/"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 8081 is not listed, want a reset by the pod, got %q, %v", body, err)
	}
	// And so does the pod itself, by way of 127.0.0.1.
	mustGet(t, p.Pod, "http://127.0.0.1:8080/", "10.0.2.1")
}

func TestBridgeNetfilterCarriesGuestTraffic(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); on && err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skip("this kernel has br_netfilter neither built in nor loaded: run 'sudo modprobe br_netfilter'")
			}
			p := runningPod(t, Options{BridgeNetfilter: &on})
			serve(t, p.Neighbour, "10.244.1.1:80")
			mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
		})
	}
}

func TestWiringIsKubeVirts(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := newPod(t, Options{Binding: b, MTU: 1400})
		podMAC, err := p.Pod.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wire(); err != nil {
			t.Fatal(err)
		}
		wantPorts := map[Binding]string{Masquerade: "tap0", Bridge: "eth0-nic tap0", ManagedTap: "eth0-nic tap0"}[b]
		if got := ports(t, p.Pod, "k6t-eth0"); got != wantPorts {
			t.Errorf("ports of k6t-eth0: %s, want %s", got, wantPorts)
		}
		tap, err := p.Pod.link("tap0")
		if err != nil {
			t.Fatal(err)
		}
		if kind := map[bool]string{true: "tuntap", false: "veth"}[RealTaps()]; tap.Type() != kind || tap.Attrs().MTU != 1400 || tap.Attrs().RawFlags&syscall.IFF_RUNNING != 0 {
			t.Errorf("tap0 is a %s, MTU %d, flags %#x; want a tap of MTU 1400 without carrier",
				tap.Type(), tap.Attrs().MTU, tap.Attrs().RawFlags)
		}
		wantAddrs := map[Binding]string{Masquerade: "10.0.2.1/24", Bridge: "169.254.75.10/32", ManagedTap: ""}[b]
		if got := addrs(t, p.Pod, "k6t-eth0"); got != wantAddrs {
			t.Errorf("addresses of k6t-eth0: %q, want %q", got, wantAddrs)
		}
		if got := addrs(t, p.Pod, "eth0"); got != "10.244.1.5/24" {
			t.Errorf("addresses of eth0: %q", got)
		}
		if got, _ := p.Pod.MAC("eth0"); got.String() != podMAC.String() {
			t.Errorf("MAC of eth0: %s, want it to stay %s", got, podMAC)
		}
		eth0, err := p.Pod.link("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if up := eth0.Attrs().Flags&net.FlagUp != 0; up != (b == Masquerade) {
			t.Errorf("eth0 up: %t", up)
		}
		wantSysctls := map[string]string{"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.ip_forward": "0"}
		if b == Masquerade {
			wantSysctls = map[string]string{"net.ipv4.conf.all.arp_ignore": "0", "net.ipv4.ip_forward": "1",
				"net.ipv4.conf.k6t-eth0.route_localnet": "1"}
			if got, _ := p.Pod.MAC("k6t-eth0"); got.String() != "02:00:00:00:00:00" {
				t.Errorf("MAC of k6t-eth0: %s", got)
			}
		}
		for key, want := range wantSysctls {
			if got := sysctl(t, p.Pod, key); got != want {
				t.Errorf("sysctl %s = %s, want %s", key, got, want)
			}
		}
		if err := p.StartGuest(); err != nil {
			t.Fatal(err)
		}
		guestMAC, err := p.Guest.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if same := guestMAC.String() == podMAC.String(); same != (b != Masquerade) {
			t.Errorf("the guest's MAC %s, the pod's %s", guestMAC, podMAC)
		}
		if tapMAC, _ := p.Pod.MAC("tap0"); tapMAC.String() == guestMAC.String() {
			t.Errorf("tap0 has the guest's MAC %s", tapMAC)
		}
	})
}

func needTaps(t *testing.T) {
	t.Helper()
	if !RealTaps() {
		const why = "a veth pair is in place of the tap, since this user may not open " + tunDevice
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

func TestTapBelongsToQEMU(t *testing.T) {
	needTaps(t)
	p := newPod(t, Options{})
	if err := p.Wire(); err != nil {
		t.Fatal(err)
	}
	link, err := p.Pod.link("tap0")
	if err != nil {
		t.Fatal(err)
	}
	// A user namespace without a uid 107 shows no owner, and none can be set.
	want := map[bool]uint32{true: qemuID, false: 0}[idIsMapped(t, qemuID)]
	if tap := link.(*netlink.Tuntap); tap.Owner != want || tap.Group != want {
		t.Errorf("tap0 belongs to uid %d and gid %d, want %d", tap.Owner, tap.Group, want)
	}
}

func TestPrimaryInterfaceOfAnotherName(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge, PrimaryInterface: "ovn-udn1"})
	if got := ports(t, p.Pod, "k6t-ovn-udn1"); got != "ovn-udn1-nic tap0" {
		t.Errorf("ports of k6t-ovn-udn1: %s", got)
	}
	serve(t, p.Neighbour, "10.244.1.1:80")
	mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
}

func TestGuestStopsAndStartsAgain(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b})
		serve(t, p.Neighbour, "10.244.1.1:80")
		for range 2 {
			mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
			if err := p.StopGuest(); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Guest.MAC("eth0"); err == nil {
				t.Fatal("the stopped guest has a NIC")
			}
			if err := p.StartGuest(); err != nil {
				t.Fatal(err)
			}
		}
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	})
}

func TestTapUnpluggedAndPluggedAgain(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b})
		serve(t, p.Neighbour, "10.244.1.1:80")
		if err := p.UnplugTap(); err != nil {
			t.Fatal(err)
		}
		if got := ports(t, p.Pod, "k6t-eth0"); strings.Contains(got, "tap0") {
			t.Fatalf("ports of k6t-eth0: %s", got)
		}
		if err := p.PlugTap(); err != nil {
			t.Fatal(err)
		}
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	})
}

func TestBridgeRemovedAndRestored(t *testing.T) {
	bindings(t, func(t *testing.T, b Binding) {
		p := runningPod(t, Options{Binding: b})
		serve(t, p.Neighbour, "10.244.1.1:80")
		before := ports(t, p.Pod, "k6t-eth0")
		if err := p.RemoveBridge(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Pod.MAC("k6t-eth0"); err == nil {
			t.Fatal("the bridge is still there")
		}
		if err := p.RestoreBridge(); err != nil {
			t.Fatal(err)
		}
		if got := ports(t, p.Pod, "k6t-eth0"); got != before {
			t.Errorf("ports of k6t-eth0: %s, before: %s", got, before)
		}
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	})
}

func TestSecondaryNetwork(t *testing.T) {
	for _, hotplug := range []bool{false, true} {
		t.Run(fmt.Sprintf("hotplug=%t", hotplug), func(t *testing.T) {
			p := newPod(t, Options{})
			if err := p.Wire(); err != nil {
				t.Fatal(err)
			}
			steps := []func() error{func() error { return p.AddSecondaryBridge("pod37a8eec1ce1") }, p.StartGuest}
			if hotplug {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, step := range steps {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if got := ports(t, p.Pod, "k6t-37a8eec1ce1"); got != "37a8eec1ce1-nic tap37a8eec1ce1" {
				t.Errorf("ports: %s", got)
			}
			serve(t, p.Neighbour, ":80")
			mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
			mustGet(t, p.Guest, "http://10.245.1.1/", "10.245.1.5")
		})
	}
}

func TestOptionsThatContradictEachOther(t *testing.T) {
	for want, options := range map[string]Options{
		`binding "slirp"`: {Binding: "slirp"},
		"ports [22]":      {Binding: Bridge, Ports: []uint16{22}},
		"ports [80]":      {Binding: Passt, Ports: []uint16{80}},
	} {
		if _, err := New(options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error about %s", options, err, want)
		}
	}
}

// idIsMapped says whether a uid means anything in this process's user
// namespace.
func idIsMapped(t *testing.T, id uint64) bool {
	t.Helper()
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(uidMap)) {
		var inside, outside, length uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &length); err != nil {
			t.Fatal(err)
		}
		if inside <= id && id < inside+length {
			return true
		}
	}
	return false
}

// The pod is one that somebody else has made, as far as it is of importance here.
func TestAdoptedPodHasAGuest(t *testing.T) {
	made := newPod(t, Options{WithoutIPv6: true})
	namespace, err := OpenNamespace(made.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	p, err := Adopt(namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Wire(); err != nil {
		t.Fatal(err)
	}
	if err := p.StartGuest(); err != nil {
		t.Fatal(err)
	}
	serve(t, made.Neighbour, "10.244.1.1:80")
	mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
}

// passt's CNI plugin has opened all ports when the pod's own sysctls are written.
func TestPasstHasNoLinks(t *testing.T) {
	p := newPod(t, Options{Binding: Passt})
	if got := sysctl(t, p.Pod, "net.ipv4.ip_unprivileged_port_start"); got != "0" {
		t.Errorf("the first port is %s, want 0", got)
	}
	before, err := p.Pod.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wire(); err != nil {
		t.Fatal(err)
	}
	if after, err := p.Pod.Netlink().LinkList(); err != nil || len(after) != len(before) {
		t.Errorf("%d links, %v, before %d", len(after), err, len(before))
	}
}
