// Package network judges, from the spec of a VirtualMachineInstance, by which
// way its guest gets to IMDS. It has to be known before the pod is there: what
// KubeVirt makes of the spec in the pod comes too late for the listener's port.
package network

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Way is how the guest gets to IMDS.
type Way struct {
	// RedirectPort is the TCP port for imds-server in the pod of a VM whose pod
	// network is bound by passt; 0 where the guest comes by a bridge.
	RedirectPort uint16
	// Problems are sentences that say why IMDS cannot work so.
	Problems []string
	// Warnings are sentences that say what the VM's owner may not expect.
	Warnings []string
}

// WayOf judges the spec of a VirtualMachineInstance that asks for IMDS with
// these imds.kubevirt.io/ annotations.
func WayOf(spec, annotations jsontree.Object) Way {
	all := interfacesOf(spec)
	if problem := unserved(spec, all); problem != "" {
		return Way{Problems: []string{problem}}
	}
	if isRedirected(spec, all) {
		return redirected(all, annotations)
	}
	return bridged(all)
}

// unserved says why no way leads to IMDS; empty when one does.
func unserved(spec jsontree.Object, all []iface) string {
	if len(all) == 0 {
		// Without a list KubeVirt adds an interface of its own.
		if jsontree.Lookup(spec, "domain", "devices", "autoattachPodInterface") == false {
			return "the VM has no network interface, by which its guest could ask: add one, or remove " + annotation.Enabled
		}
		return ""
	}
	var bindings []string
	for _, i := range all {
		binding := i.beyondThePod()
		if binding == "" {
			return ""
		}
		bindings = append(bindings, binding)
	}
	return fmt.Sprintf("no interface of the VM has a way to the pod, where IMDS is, but only %s: use masquerade, bridge or passt for one of them, or remove %s",
		strings.Join(bindings, ", "), annotation.Enabled)
}

// isRedirected reports whether the guest's questions come by passt. That is a
// matter of the pod network, since the guest's default route is there; a VM
// without it sends them by any of its interfaces.
func isRedirected(spec jsontree.Object, all []iface) bool {
	primary := primaryNetwork(spec)
	byPasst := false
	for _, i := range all {
		if primary != "" && i.name() == primary {
			return i.isPasst()
		}
		byPasst = byPasst || i.isPasst()
	}
	return byPasst
}

// The redirection takes the first port that the VM does not list. All are in the
// kernel's range for outgoing connections (ip_local_port_range), which passt
// leaves out when it binds all ports for the VM.
const (
	firstRedirectPort = 60080
	lastRedirectPort  = 60999
)

func redirected(all []iface, annotations jsontree.Object) Way {
	var way Way
	way.RedirectPort = firstRedirectPort
	for way.RedirectPort <= lastRedirectPort && listPort(all, way.RedirectPort) {
		way.RedirectPort++
	}
	if way.RedirectPort > lastRedirectPort {
		way.RedirectPort = 0
		way.Problems = append(way.Problems, fmt.Sprintf("the VM's ports leave none for IMDS: leave out one from %d to %d", firstRedirectPort, lastRedirectPort))
	}
	if _, found := annotations[annotation.HopLimit]; found {
		// It would be a protection that is not there.
		way.Problems = append(way.Problems, fmt.Sprintf("annotation %s has no effect on a VM whose pod network is bound by passt, which sends the answers on with a TTL of its own: remove it, and consider %s", annotation.HopLimit, annotation.RequireHeader))
	}
	if _, found := annotations[annotation.BridgeName]; found {
		way.Problems = append(way.Problems, fmt.Sprintf("annotation %s has no effect on a VM whose pod network is bound by passt, where IMDS is on no bridge: remove it", annotation.BridgeName))
	}
	if others := named(all, func(i iface) bool { return !i.isPasst() }); others != "" {
		way.Warnings = append(way.Warnings, "IMDS serves the guest by passt only, and not on its interfaces "+others)
	}
	return way
}

// bridged warns of passt on a network that is not the one IMDS serves: IMDS
// listens on port 80 of the pod, where passt opens the VM's ports, and comes
// first. Where the VM lists that port, passt would end, and the VM with it.
func bridged(all []iface) Way {
	byPasst := named(all, iface.isPasst)
	if byPasst == "" {
		return Way{}
	}
	for _, i := range all {
		if i.isPasst() && i.listsPort(80) {
			return Way{Problems: []string{fmt.Sprintf("the interface %s uses passt and lists port 80, which IMDS needs in the pod: use passt for the pod network too, or another binding here, or leave out that port", annotation.Quote(i.name()))}}
		}
	}
	return Way{Warnings: []string{"IMDS takes port 80 from the VM on the interfaces that use passt: " + byPasst}}
}

// Same reports whether two specs are the same as far as this package looks at
// them.
func Same(a, b jsontree.Object) bool {
	for _, path := range [][]string{
		{"domain", "devices", "interfaces"},
		{"domain", "devices", "autoattachPodInterface"},
		{"networks"},
	} {
		if !reflect.DeepEqual(jsontree.Lookup(a, path...), jsontree.Lookup(b, path...)) {
			return false
		}
	}
	return true
}
