package podnet

import (
	"net/netip"
	"testing"
)

func newLAN(t *testing.T) *LAN {
	t.Helper()
	lan, err := NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lan.Close() })
	serve(t, lan.Gateway, ":80")
	return lan
}

func attach(t *testing.T, lan *LAN, options Options) *Pod {
	t.Helper()
	p, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if err := lan.Attach(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Wire(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestVMKeepsAddressAndMACInAnotherPodOfTheLAN(t *testing.T) {
	Require(t)
	lan := newLAN(t)
	options := Options{Binding: Bridge, GuestMAC: randomMAC()}
	source, target := attach(t, lan, options), attach(t, lan, options)
	for _, p := range []*Pod{source, target, source} {
		if err := p.StartGuest(); err != nil {
			t.Fatal(err)
		}
		if mac, err := p.Guest.MAC("eth0"); err != nil || mac.String() != options.GuestMAC.String() {
			t.Errorf("the guest's MAC is %s (%v), want %s", mac, err, options.GuestMAC)
		}
		mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
		if err := p.StopGuest(); err != nil {
			t.Fatal(err)
		}
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if err := target.StartGuest(); err != nil {
		t.Fatal(err)
	}
	mustGet(t, target.Guest, "http://10.244.1.1/", "10.244.1.5")
}

func TestMasqueradePodsOfALANHaveAddressesOfTheirOwn(t *testing.T) {
	Require(t)
	lan := newLAN(t)
	first := attach(t, lan, Options{})
	second := attach(t, lan, Options{Address: netip.MustParseAddr("10.244.1.6")})
	for p, address := range map[*Pod]string{first: "10.244.1.5", second: "10.244.1.6"} {
		if err := p.StartGuest(); err != nil {
			t.Fatal(err)
		}
		mustGet(t, p.Guest, "http://10.244.1.1/", address)
	}
	serve(t, first.Guest, ":80")
	mustGet(t, second.Guest, "http://10.244.1.5/", "10.244.1.6")
}
