package main

import (
	"fmt"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestGuestIsServed(t *testing.T) {
	on, off := true, false
	for _, options := range []podnet.Options{
		{Binding: podnet.Masquerade},
		{Binding: podnet.Masquerade, BridgeNetfilter: &on},
		{Binding: podnet.Masquerade, BridgeNetfilter: &off},
		{Binding: podnet.Masquerade, BridgeNetfilter: &on, RPFilter: 1},
		{Binding: podnet.Masquerade, BridgeNetfilter: &on, RPFilter: 2},
		{Binding: podnet.Masquerade, BridgeNetfilter: &on, Ports: []uint16{22}},
		{Binding: podnet.Masquerade, BridgeNetfilter: &on, Ports: []uint16{80}},
		{Binding: podnet.Masquerade, MTU: 1400},
		{Binding: podnet.Masquerade, PrimaryInterface: "ovn-udn1"},
		{Binding: podnet.Bridge},
		{Binding: podnet.Bridge, BridgeNetfilter: &on},
		{Binding: podnet.Bridge, BridgeNetfilter: &off},
		{Binding: podnet.Bridge, BridgeNetfilter: &on, RPFilter: 1},
		{Binding: podnet.Bridge, MTU: 9000},
		{Binding: podnet.Bridge, PrimaryInterface: "ovn-udn1"},
		{Binding: podnet.ManagedTap},
		{Binding: podnet.ManagedTap, BridgeNetfilter: &on, RPFilter: 1},
		{Binding: podnet.Masquerade, GuestWithoutIPv4: true, BridgeNetfilter: &on},
		{Binding: podnet.Masquerade, GuestWithoutIPv4: true, BridgeNetfilter: &off},
		{Binding: podnet.Bridge, GuestWithoutIPv4: true, BridgeNetfilter: &on},
		{Binding: podnet.Bridge, GuestWithoutIPv4: true, BridgeNetfilter: &off},
		{Binding: podnet.ManagedTap, GuestWithoutIPv4: true},
		{Binding: podnet.Masquerade, WithoutIPv6: true, BridgeNetfilter: &on},
		{Binding: podnet.Bridge, WithoutIPv6: true},
	} {
		t.Run(name(options), func(t *testing.T) {
			t.Parallel()
			pod, p := servedPod(t, options)
			for range 3 {
				mustServe(t, pod, guestOf(options))
			}
			if lines := p.said(); len(lines) > 0 {
				t.Errorf("imds-init found more to do in a pod that stays as it is: %q", lines)
			}
		})
	}
}

func name(o podnet.Options) string {
	s := string(o.Binding)
	if o.BridgeNetfilter != nil {
		s += fmt.Sprintf(" nf=%t", *o.BridgeNetfilter)
	}
	if o.RPFilter != 0 {
		s += fmt.Sprintf(" rp_filter=%d", o.RPFilter)
	}
	if o.Ports != nil {
		s += fmt.Sprintf(" ports=%d", o.Ports)
	}
	if o.MTU != 0 {
		s += fmt.Sprintf(" mtu=%d", o.MTU)
	}
	if o.GuestWithoutIPv4 {
		s += " guest without IPv4"
	}
	if o.WithoutIPv6 {
		s += " pod without IPv6"
	}
	if o.PrimaryInterface != "" {
		s += " on " + o.PrimaryInterface
	}
	return s
}

// The first question after the wiring is answered at once: the endpoint's
// first packets are not dropped by an interface that has just come up, which
// would cost the guest the second until it asks again.
func TestFirstAnswerIsNotLost(t *testing.T) {
	for range 5 {
		pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
		p := start(t, pod, onThisKernel)
		p.waitFor(t, "endpoint ready")
		serve(t, pod)
		must(t, pod.Wire())
		p.waitFor(t, "msg=wired")
		must(t, pod.StartGuest())
		nic, err := podnet.Capture(pod.Guest, "eth0")
		must(t, err)
		mustServeIPv4(t, pod, guestAddress(podnet.Bridge))
		frames, err := nic.Stop()
		must(t, err)
		questions := 0
		for _, frame := range frames {
			if isSYN(frame) {
				questions++
			}
		}
		if questions != 1 {
			t.Errorf("the guest opened its connection %d times until it was answered", questions)
		}
	}
}

// isSYN says whether the guest opens a TCP connection (RFC 9293) to the
// address with this frame.
func isSYN(frame podnet.Frame) bool {
	const header, syn = 14, 0x02
	d := frame.Data
	return frame.Outgoing && frame.ConcernsMetadata() && len(d) >= header+40 &&
		d[12] == 0x08 && d[13] == 0x00 && d[header+9] == 6 && d[header+20+13] == syn
}
