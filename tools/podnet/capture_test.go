package podnet

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

func TestCaptureSeesBothDirections(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge})
	serve(t, p.Neighbour, "10.244.1.1:80")
	tap, err := Capture(p.Pod, "tap0")
	if err != nil {
		t.Fatal(err)
	}
	mustGet(t, p.Guest, "http://10.244.1.1/", "10.244.1.5")
	tcp := func(outgoing bool, source string) func(Frame) bool {
		return func(f Frame) bool {
			protocol, payload := f.payload()
			return f.Outgoing == outgoing && protocol == unix.ETH_P_IP && len(payload) > 20 && payload[9] == unix.IPPROTO_TCP &&
				bytes.Equal(payload[12:16], net.ParseIP(source).To4())
		}
	}
	ctx := within(t, 10*time.Second)
	if err := tap.Wait(ctx, tcp(false, "10.244.1.5")); err != nil {
		t.Error("nothing from the guest:", err)
	}
	if err := tap.Wait(ctx, tcp(true, "10.244.1.1")); err != nil {
		t.Error("nothing to the guest:", err)
	}
	frames, err := tap.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if f.ConcernsMetadata() {
			t.Errorf("no part of this is about the metadata service: %s", f)
		}
	}
}

func TestCaptureReportsAnInterfaceThatWentAway(t *testing.T) {
	p := runningPod(t, Options{})
	tap, err := Capture(p.Pod, "tap0")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.UnplugTap(); err != nil {
		t.Fatal(err)
	}
	if _, err := tap.Stop(); err == nil {
		t.Error("want an error: the recording has an end that its user does not know of")
	}
}

func TestFramesThatConcernTheMetadataService(t *testing.T) {
	var (
		metadata = []byte{169, 254, 169, 254}
		guest    = []byte{10, 0, 2, 2}
		mac      = net.HardwareAddr{2, 0, 0, 0, 0, 7}
		other    = net.HardwareAddr{2, 0, 0, 0, 0, 8}
	)
	ethernet := func(destination, source net.HardwareAddr, protocol uint16, payload ...byte) []byte {
		data := append(append([]byte{}, destination...), source...)
		return append(binary.BigEndian.AppendUint16(data, protocol), payload...)
	}
	arp := func(sender, target []byte) []byte {
		payload := make([]byte, 28)
		copy(payload[14:], sender)
		copy(payload[24:], target)
		return payload
	}
	ipv4 := func(source, destination []byte) []byte {
		payload := make([]byte, 20)
		copy(payload[12:], source)
		copy(payload[16:], destination)
		return payload
	}
	vlan := func(id byte, protocol uint16, payload []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{0xe0, id}, protocol), payload...)
	}
	ours, theirs, group := MetadataIPv6Addr, netip.MustParseAddr("fe80::7"), netip.MustParseAddr("ff02::1:fffe:a9fe")
	ipv6 := func(source, destination netip.Addr) []byte {
		return packet.IPv6(other, mac, source, destination, unix.IPPROTO_TCP, nil)
	}
	discovery := func(kind byte, target netip.Addr) []byte {
		return packet.NeighbourMessage(kind, other, mac, theirs, group, target, other)
	}
	behindOptions := func(frame []byte) []byte {
		return packet.IPv6(other, mac, theirs, group, 0, append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, frame[54:]...))
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"ARP, who has the address", ethernet(mac, other, unix.ETH_P_ARP, arp(guest, metadata)...), true},
		{"ARP, the address is at", ethernet(mac, other, unix.ETH_P_ARP, arp(metadata, guest)...), true},
		{"ARP among others", ethernet(mac, other, unix.ETH_P_ARP, arp(guest, guest)...), false},
		{"IPv4 from the address", ethernet(mac, other, unix.ETH_P_IP, ipv4(metadata, guest)...), true},
		{"IPv4 to the address", ethernet(mac, other, unix.ETH_P_IP, ipv4(guest, metadata)...), true},
		{"IPv4 among others", ethernet(mac, other, unix.ETH_P_IP, ipv4(guest, guest)...), false},
		{"IPv6 from the address", ipv6(ours, theirs), true},
		{"IPv6 to the address", ipv6(theirs, ours), true},
		{"IPv6 among others", ipv6(theirs, group), false},
		{"IPv6, where is the address", discovery(packet.Solicitation, ours), true},
		{"IPv6, the address is at", discovery(packet.Advertisement, ours), true},
		{"IPv6, where is another with the same group", discovery(packet.Solicitation, netip.MustParseAddr("fe80::fe:a9fe")), false},
		{"IPv6, the address is at, behind options", behindOptions(discovery(packet.Advertisement, ours)), true},
		{"IPv4 to the address behind a priority tag", ethernet(mac, other, unix.ETH_P_8021Q, vlan(0, unix.ETH_P_IP, ipv4(guest, metadata))...), true},
		{"ARP behind a provider's priority tag", ethernet(mac, other, unix.ETH_P_8021AD, vlan(0, unix.ETH_P_ARP, arp(guest, metadata))...), true},
		{"IPv4 among others behind a priority tag", ethernet(mac, other, unix.ETH_P_8021Q, vlan(0, unix.ETH_P_IP, ipv4(guest, guest))...), false},
		{"IPv4 to the address in a VLAN", ethernet(mac, other, unix.ETH_P_8021Q, vlan(7, unix.ETH_P_IP, ipv4(guest, metadata))...), false},
		{"from the endpoint's MAC in a VLAN", ethernet(mac, EndpointMAC, unix.ETH_P_8021Q, vlan(7, unix.ETH_P_IP, nil)...), true},
		{"from the endpoint's MAC", ethernet(mac, EndpointMAC, unix.ETH_P_IPV6), true},
		{"to the endpoint's MAC", ethernet(EndpointMAC, mac, unix.ETH_P_IPV6), true},
		{"from the port's MAC", ethernet(mac, PortMAC, unix.ETH_P_IPV6), true},
		{"to the port's MAC", ethernet(PortMAC, mac, unix.ETH_P_IPV6), true},
		{"the address where another protocol has other fields", ethernet(mac, other, unix.ETH_P_IPV6, ipv4(guest, metadata)...), false},
		{"cut short in the ARP", ethernet(mac, other, unix.ETH_P_ARP, arp(guest, metadata)[:26]...), false},
		{"cut short in the tag", ethernet(mac, other, unix.ETH_P_8021Q, 0, 7), false},
		{"cut short in the MACs", EndpointMAC, false},
		{"empty", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Frame{Data: c.frame}
			if got := f.ConcernsMetadata(); got != c.want {
				t.Errorf("%s: %t, want %t", f, got, c.want)
			}
		})
	}
}
