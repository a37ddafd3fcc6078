package podnet

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

func TestProxyARPAnswersForTheWorld(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge})
	undo, err := p.ProxyARP()
	if err != nil {
		t.Fatal(err)
	}
	heard, err := Capture(p.Guest, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	own := packet.Party{Addr: PodAddr}
	if own.MAC, err = p.Guest.MAC("eth0"); err != nil {
		t.Fatal(err)
	}
	proxy, err := p.Neighbour.MAC(NeighbourInterface)
	if err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []netip.Addr{netip.MustParseAddr("203.0.113.1"), MetadataAddr} {
		question := packet.ARP(packet.ARPRequest, own.MAC, packet.Broadcast, own, packet.Party{Addr: wanted})
		if err := p.Guest.SendFrame("eth0", question); err != nil {
			t.Fatal(err)
		}
		answer := slices.Concat([]byte{packet.ARPReply}, proxy, wanted.AsSlice())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if heard.Wait(ctx, func(f Frame) bool { return !f.Outgoing && bytes.HasPrefix(packet.Payload(f.Data)[7:], answer) }) != nil {
			t.Errorf("nobody answered for %s", wanted)
		}
	}
	if _, err := heard.Stop(); err != nil {
		t.Error(err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if _, err := p.Neighbour.MAC(elsewhere); err == nil {
		t.Errorf("interface %s is still there", elsewhere)
	}
}
