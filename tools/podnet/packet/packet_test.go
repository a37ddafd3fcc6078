package packet_test

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

func TestMain(m *testing.M) { podnet.Main(m) }

// patience is far longer than a kernel takes to act on a frame.
const patience = 10 * time.Second

// link is a neighbour that sends, and a pod whose kernel judges what was sent.
type link struct {
	*podnet.Pod
	neighbour, pod packet.Party
}

func newLink(t *testing.T) link {
	t.Helper()
	podnet.Require(t)
	network, err := podnet.New(podnet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	l := link{Pod: network, neighbour: packet.Party{Addr: podnet.NeighbourAddr}, pod: packet.Party{Addr: podnet.PodAddr}}
	if l.neighbour.MAC, err = network.Neighbour.MAC(podnet.NeighbourInterface); err != nil {
		t.Fatal(err)
	}
	if l.pod.MAC, err = network.Pod.MAC("eth0"); err != nil {
		t.Fatal(err)
	}
	return l
}

// wantReply sends frames to the pod and waits for one of the pod's that matches.
func (l link) wantReply(t *testing.T, matches func(payload []byte) bool, frames ...[]byte) {
	t.Helper()
	heard, err := podnet.Capture(l.Neighbour, podnet.NeighbourInterface)
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range frames {
		if err := l.Neighbour.SendFrame(podnet.NeighbourInterface, frame); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if heard.Wait(ctx, func(f podnet.Frame) bool { return !f.Outgoing && matches(packet.Payload(f.Data)) }) != nil {
		t.Errorf("no reply to %x", frames)
	}
	seen, err := heard.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		t.Log(seen)
	}
}

func TestKernelAnswersARP(t *testing.T) {
	l := newLink(t)
	wanted := packet.Party{Addr: l.pod.Addr}
	l.wantReply(t, func(payload []byte) bool {
		return bytes.HasPrefix(payload, slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, packet.ARPReply}, l.pod.MAC, l.pod.Addr.AsSlice()))
	}, packet.ARP(packet.ARPRequest, l.neighbour.MAC, packet.Broadcast, l.neighbour, wanted))
}

// Where nobody listens, a kernel resets the connection that a correct segment
// begins, and drops one with a wrong checksum without a word.
func TestKernelUnderstandsTCP(t *testing.T) {
	l := newLink(t)
	l.wantReply(t, func(payload []byte) bool {
		const reset = 0x04
		return len(payload) >= 40 && payload[9] == unix.IPPROTO_TCP && payload[33]&reset != 0 &&
			bytes.Equal(payload[20:24], []byte{0, 81, 0x30, 0x39})
	}, packet.SYN(l.neighbour, l.pod, 12345, 81))
}

// The port-unreachable message for a datagram comes only when all of its
// fragments have come and its checksum is right.
func TestKernelReassemblesUDP(t *testing.T) {
	l := newLink(t)
	datagram := packet.UDP(l.neighbour, l.pod, 12345, 81, []byte("an odd number of bytes, and more than fit"))
	fragments := packet.Fragments(datagram, 16)
	if len(fragments) != 4 {
		t.Fatalf("%d fragments, want 4: %x", len(fragments), fragments)
	}
	l.wantReply(t, func(payload []byte) bool {
		const unreachable = 3
		return len(payload) > 48 && payload[9] == unix.IPPROTO_ICMP && payload[20] == unreachable &&
			bytes.Equal(payload[48:52], []byte{0x30, 0x39, 0, 81})
	}, fragments...)
}

// Whoever believes an advertisement asks whether somebody has the address
// already that it makes for itself.
func TestKernelBelievesTheRouter(t *testing.T) {
	l := newLink(t)
	prefix := netip.MustParsePrefix("2001:db8:7::/64")
	router := packet.Party{MAC: l.neighbour.MAC, Addr: netip.MustParseAddr("fe80::1")}
	l.wantReply(t, func(payload []byte) bool {
		const solicitation = 135
		return len(payload) >= 64 && payload[6] == unix.IPPROTO_ICMPV6 && payload[40] == solicitation &&
			bytes.HasPrefix(payload[48:], prefix.Addr().AsSlice()[:8])
	}, packet.RouterAdvertisement(router, prefix))
}

func TestTagsAreInFrontOfThePayload(t *testing.T) {
	from := packet.Party{MAC: packet.Broadcast, Addr: podnet.NeighbourAddr}
	plain := packet.UDP(from, from, 1, 2, []byte("data"))
	for name, c := range map[string]struct {
		tags []packet.Tag
		want []byte
	}{
		"none":         {nil, nil},
		"802.1Q":       {[]packet.Tag{packet.CustomerTag}, []byte{0x81, 0, 0, 7}},
		"QinQ":         {[]packet.Tag{packet.ProviderTag, packet.CustomerTag}, []byte{0x88, 0xa8, 0, 8, 0x81, 0, 0, 7}},
		"the priority": {[]packet.Tag{packet.PriorityTag}, []byte{0x81, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			tagged := packet.Tagged(plain, c.tags...)
			if want := slices.Concat(plain[:12], c.want, plain[12:]); !bytes.Equal(tagged, want) {
				t.Errorf("%x, want %x", tagged, want)
			}
			if payload := packet.Payload(tagged); !bytes.Equal(payload, plain[14:]) {
				t.Errorf("payload %x, want %x", payload, plain[14:])
			}
		})
	}
}
