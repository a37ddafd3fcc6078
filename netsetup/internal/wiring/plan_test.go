package wiring

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// The links of a pod as KubeVirt leaves them, by binding.
var (
	lo    = Link{Index: 1, Name: "lo", MTU: 65536}
	ours  = []Link{{Index: 2, Name: "veth-imds-br", Kind: "veth", MTU: 1500}, {Index: 3, Name: "veth-imds", Kind: "veth", MTU: 1500}}
	k6t   = Link{Index: 10, Name: "k6t-eth0", Kind: "bridge", MTU: 1400}
	tap0  = Link{Index: 11, Name: "tap0", Kind: "tun", Master: 10, MTU: 1400}
	eth0  = Link{Index: 5, Name: "eth0", Kind: "veth", MTU: 1400}
	nic   = Link{Index: 5, Name: "eth0-nic", Kind: "veth", Master: 10, MTU: 1400}
	dummy = Link{Index: 12, Name: "eth0", Kind: "dummy", MTU: 1400}

	second     = Link{Index: 6, Name: "k6t-16477688c0e", Kind: "bridge", MTU: 9000}
	secondTap  = Link{Index: 7, Name: "tap16477688c0e", Kind: "tun", Master: 6, MTU: 9000}
	secondNIC  = Link{Index: 8, Name: "16477688c0e-nic", Kind: "veth", Master: 6, MTU: 9000}
	ownPort    = Link{Index: 2, Name: "veth-imds-br", Kind: "veth", Master: 10, MTU: 1400}
	masquerade = []Link{lo, eth0, k6t, tap0}
	bridged    = []Link{lo, nic, k6t, tap0, dummy}
)

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		scenario   string
		links      []Link
		bridgeName string
		want       Wiring
	}{
		{"nothing there yet", []Link{lo, eth0}, "", Wiring{Waiting: "a bridge named k6t-*"}},
		{"only our own links", append([]Link{lo}, ours...), "", Wiring{Waiting: "a bridge named k6t-*"}},
		{"bridge without ports", []Link{lo, eth0, k6t}, "", Wiring{Waiting: "a guest's tap on bridge k6t-eth0"}},
		{"bridge with its uplink, tap still missing", []Link{lo, nic, k6t}, "", Wiring{Waiting: "a guest's tap on bridge k6t-eth0"}},
		{"tap that is not a port yet", []Link{lo, k6t, {Index: 11, Name: "tap0", Kind: "tun"}}, "", Wiring{Waiting: "a guest's tap on bridge k6t-eth0"}},
		{"masquerade", masquerade, "", Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}}},
		{"bridge binding: the uplink is isolated", bridged, "", Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}, Uplinks: []string{"eth0-nic"}}},
		{"already wired: our port is neither guest nor uplink", append([]Link{ownPort}, bridged...), "", Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}, Uplinks: []string{"eth0-nic"}}},
		{"bridge that is not KubeVirt's", []Link{lo, {Index: 10, Name: "cni0", Kind: "bridge"}, tap0}, "", Wiring{Waiting: "a bridge named k6t-*"}},
		{"k6t- name on a link that is no bridge", []Link{lo, {Index: 10, Name: "k6t-eth0", Kind: "dummy"}, tap0}, "", Wiring{Waiting: "a bridge named k6t-*"}},
		{"two bridges: the pod network's first, though it is younger", []Link{second, secondTap, secondNIC, k6t, tap0}, "", Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}}},
		{"two bridges: the pod network's has no tap yet", []Link{second, secondTap, secondNIC, k6t}, "", Wiring{Bridge: second, MTU: 9000, Guests: []Link{secondTap}, Uplinks: []string{"16477688c0e-nic"}}},
		{"no pod network: the first of two secondary bridges by name, as in the pod after a migration", []Link{
			{Index: 2, Name: "k6t-net2", Kind: "bridge"}, {Index: 21, Name: "tap2", Kind: "tun", Master: 2, MTU: 1500}, second, secondTap},
			"", Wiring{Bridge: second, MTU: 9000, Guests: []Link{secondTap}}},
		{"pod network on an interface not named eth0", []Link{second, secondTap,
			{Index: 30, Name: "k6t-ovn-udn1", Kind: "bridge"}, {Index: 31, Name: "tap0", Kind: "tun", Master: 30, MTU: 1500}},
			"", Wiring{Bridge: Link{Index: 30, Name: "k6t-ovn-udn1", Kind: "bridge"}, MTU: 1500, Guests: []Link{{Index: 31, Name: "tap0", Kind: "tun", Master: 30, MTU: 1500}}}},
		{"bridge named by the user, another one first", []Link{k6t, tap0, second, secondTap, secondNIC}, "k6t-16477688c0e",
			Wiring{Bridge: second, MTU: 9000, Guests: []Link{secondTap}, Uplinks: []string{"16477688c0e-nic"}}},
		{"bridge named by the user, not there yet", masquerade, "k6t-net1", Wiring{Waiting: "a bridge named k6t-net1, as the VM's annotation has it; there are k6t-eth0"}},
		{"bridge named by the user, without a tap", []Link{k6t, tap0, second}, "k6t-16477688c0e", Wiring{Waiting: "a guest's tap on bridge k6t-16477688c0e"}},
		{"network attachment that is a tap, named like a guest's", []Link{k6t, tap0, {Index: 13, Name: "tap1-nic", Kind: "tun", Master: 10, MTU: 1500}}, "",
			Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}, Uplinks: []string{"tap1-nic"}}},
		{"secondary network with an ordinal name", []Link{{Index: 20, Name: "k6t-net1", Kind: "bridge"}, {Index: 21, Name: "tap1", Kind: "veth", Master: 20, MTU: 1500}}, "",
			Wiring{Bridge: Link{Index: 20, Name: "k6t-net1", Kind: "bridge"}, MTU: 1500, Guests: []Link{{Index: 21, Name: "tap1", Kind: "veth", Master: 20, MTU: 1500}}}},
		{"tap with a name of somebody else's", []Link{k6t, {Index: 13, Name: "vm7", Kind: "tun", Master: 10, MTU: 1500}}, "",
			Wiring{Bridge: k6t, MTU: 1500, Guests: []Link{{Index: 13, Name: "vm7", Kind: "tun", Master: 10, MTU: 1500}}}},
		{"another sidecar's port: neither guest nor uplink", []Link{k6t, tap0, {Index: 13, Name: "tap7", Kind: "veth", Master: 10, MTU: 1500}}, "",
			Wiring{Bridge: k6t, MTU: 1400, Guests: []Link{tap0}}},
		{"bridge whose MTU was held down by our own port", []Link{
			{Index: 10, Name: "k6t-eth0", Kind: "bridge", MTU: 1500}, {Index: 11, Name: "tap0", Kind: "tun", Master: 10, MTU: 9000},
			{Index: 2, Name: "veth-imds-br", Kind: "veth", Master: 10, MTU: 1500}},
			"", Wiring{Bridge: Link{Index: 10, Name: "k6t-eth0", Kind: "bridge", MTU: 1500}, Guests: []Link{{Index: 11, Name: "tap0", Kind: "tun", Master: 10, MTU: 9000}}, MTU: 9000}},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			got := Plan(c.links, c.bridgeName, "")
			got.OtherPorts, got.OtherGuests, got.OtherUplinks = nil, nil, nil
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("Plan:\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestPreferredBridge(t *testing.T) {
	links := append([]Link{lo, second, secondTap, secondNIC}, bridged...)
	for preferred, want := range map[string]string{
		"":                 "k6t-eth0",
		"k6t-eth0":         "k6t-eth0",
		"k6t-16477688c0e":  "k6t-16477688c0e", // though the pod network's is there
		"k6t-not-there":    "k6t-eth0",
		"k6t-net1":         "k6t-eth0",
		"k6t-16477688c0e ": "k6t-eth0",
	} {
		if got := Plan(links, "", preferred).Bridge.Name; got != want {
			t.Errorf("preferring %q: %s, want %s", preferred, got, want)
		}
	}
	if got := Plan(links, "k6t-eth0", "k6t-16477688c0e").Bridge.Name; got != "k6t-eth0" {
		t.Errorf("the user's bridge gives way to the preferred one: %s", got)
	}
}

// A bridge that was joined stays so when another comes that is before it by name.
func TestJoinedBridgeIsKept(t *testing.T) {
	third := []Link{{Index: 40, Name: "k6t-0", Kind: "bridge"}, {Index: 41, Name: "tap0c", Kind: "tun", Master: 40, MTU: 1500}}
	links := append([]Link{second, secondTap, {Index: 2, Name: Port, Kind: "veth", Master: second.Index}}, third...)
	if got := Plan(links, "", ""); got.Bridge != second {
		t.Errorf("joined to %v, want %v", got.Bridge, second)
	}
	if got := Plan(links, "", "k6t-0"); got.Bridge.Name != "k6t-0" {
		t.Errorf("joined to %v, want the preferred bridge", got.Bridge)
	}
}

// The ports of the pod's other bridges are told apart from those of the joined one.
func TestOtherBridges(t *testing.T) {
	links := append([]Link{second, secondTap, secondNIC,
		{Index: 50, Name: "br0", Kind: "bridge"}, {Index: 51, Name: "tap9", Kind: "tun", Master: 50}, {Index: 52, Name: "x-nic", Kind: "veth", Master: 50}}, bridged...)
	got := Plan(links, "", "")
	want := Wiring{OtherPorts: []string{"16477688c0e-nic", "tap16477688c0e", "tap9", "x-nic"}, OtherGuests: []Link{secondTap}, OtherUplinks: []string{"16477688c0e-nic"}}
	if !slices.Equal(got.OtherPorts, want.OtherPorts) || !slices.Equal(got.OtherGuests, want.OtherGuests) || !slices.Equal(got.OtherUplinks, want.OtherUplinks) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// The kernel lists links in no promised order.
func TestPlanDoesNotDependOnTheOrderOfTheLinks(t *testing.T) {
	links := append([]Link{lo, second, secondTap, secondNIC}, bridged...)
	want := Plan(links, "", "")
	for range 100 {
		rand.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
		if got := Plan(links, "", ""); !reflect.DeepEqual(got, want) {
			t.Fatalf("Plan of %v:\n got %+v\nwant %+v", links, got, want)
		}
	}
}
