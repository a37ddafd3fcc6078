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
	} {
		t.Run(name(options), func(t *testing.T) {
			pod, p := servedPod(t, options)
			for range 3 {
				mustServe(t, pod, guestAddress(options.Binding))
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
	if o.PrimaryInterface != "" {
		s += " on " + o.PrimaryInterface
	}
	return s
}
