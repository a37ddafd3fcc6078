package attacks

import (
	"net"
	"net/netip"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// What should not be is noticed wherever it is seen, and what may be is not.
func TestEvidence(t *testing.T) {
	endpoint := packet.Party{MAC: podnet.EndpointMAC, Addr: podnet.MetadataAddr}
	guest := packet.Party{MAC: net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Addr: podnet.PodAddr}
	stranger := packet.Party{MAC: net.HardwareAddr{0x52, 0x54, 0, 0x65, 0x43, 0x21}, Addr: podnet.NeighbourAddr}
	liar := packet.Party{MAC: stranger.MAC, Addr: podnet.MetadataAddr}
	lo := packet.Party{MAC: make(net.HardwareAddr, 6), Addr: netip.MustParseAddr("127.0.0.1")}
	own := packet.Party{MAC: lo.MAC, Addr: podnet.MetadataAddr}
	forbidden := packet.UDP(guest, endpoint, 20001, 80, []byte("a question"))

	const in, out = false, true
	for _, c := range []struct {
		name     string
		place    string
		outgoing bool
		frame    []byte
		wrong    bool
	}{
		{"the guest's question", endpointDevice, in, packet.SYN(guest, endpoint, 40000, 80), false},
		{"the answer", endpointDevice, out, packet.SYN(endpoint, guest, 80, 40000), false},
		{"a stranger's question", endpointDevice, in, packet.SYN(stranger, endpoint, 40000, 80), true},
		{"what was forbidden", endpointDevice, in, forbidden, true},
		{"what was forbidden, in a VLAN and padded", endpointDevice, in, append(packet.Tagged(forbidden, packet.CustomerTag), 0, 0), true},

		{"the answer", guestTap, out, packet.SYN(endpoint, guest, 80, 40000), false},
		{"a stranger's word", guestTap, out, packet.SYN(stranger, guest, 80, 40000), false},
		{"what the guest itself says", guestTap, in, packet.SYN(packet.Party{MAC: guest.MAC, Addr: endpoint.Addr}, stranger, 80, 40000), false},
		{"an impostor's answer", guestTap, out, packet.SYN(liar, guest, 80, 40000), true},
		{"an impostor's ARP", guestTap, out, packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), true},
		{"an impostor's ARP with a priority", guestTap, out, packet.Tagged(packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), packet.PriorityTag), true},
		{"somebody of a VLAN", guestTap, out, packet.Tagged(packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), packet.CustomerTag), false},
		{"a stranger with our MAC", guestTap, out, packet.SYN(packet.Party{MAC: endpoint.MAC, Addr: stranger.Addr}, guest, 80, 40000), true},

		{"an answer to the pod", bridgeDevice, in, packet.SYN(endpoint, guest, 80, 40000), true},
		{"an answer to the pod", loopback, in, packet.SYN(own, guest, 80, 40000), true},
		{"an answer to a probe", loopback, in, packet.SYN(own, lo, 80, 40000), false},
		{"an answer to a guest that plays a probe", loopback, in, packet.SYN(own, lo, 80, 20000), true},

		{"a neighbour's own attack", uplink, out, packet.SYN(stranger, endpoint, 40000, 80), false},
		{"a question on the uplink", uplink, in, packet.SYN(guest, packet.Party{MAC: stranger.MAC, Addr: endpoint.Addr}, 40000, 80), true},
		{"an answer on the uplink", uplink, in, packet.SYN(endpoint, stranger, 80, 40000), true},
		{"the guest's own traffic", uplink, in, packet.SYN(guest, stranger, 40000, 80), false},
	} {
		t.Run(c.place+"/"+c.name, func(t *testing.T) {
			s := &scene{seen: newEvidence(), guestMACs: []string{guest.MAC.String()}}
			s.forbid([][]byte{forbidden})
			s.rule(c.place)(podnet.Frame{Outgoing: c.outgoing, Data: c.frame})
			found := len(s.seen.reached)+len(s.seen.answered)+len(s.seen.leaked) > 0
			if found != c.wrong {
				t.Errorf("noticed: %t, want %t", found, c.wrong)
			}
		})
	}
}
