// Package annotation holds the names and the rules of this project's annotations: what a user may write on a
// VirtualMachine, its template or a VirtualMachineInstance, and what only the webhook writes.
package annotation

import "slices"

// Prefix begins the names of what a user may set, and of what the webhook writes on a pod.
const (
	Domain = "imds.kubevirt.io"
	Prefix = Domain + "/"
)

// VerdictPrefix begins those of what it finds out about an instance: older versions let them pass.
const VerdictPrefix = "verdict." + Prefix

// Annotations that a user may set. KubeVirt copies them to the instance and to the virt-launcher pod.
const (
	Enabled                = Prefix + "enabled"                  // "true" turns IMDS on for the VM
	Network                = Prefix + "network"                  // to be served instead of the pod network
	BridgeName             = Prefix + "bridge-name"              // for those who know better than Network
	TokenAudiences         = Prefix + "token-audiences"          // each gets a token of its own
	TokenExpirationSeconds = Prefix + "token-expiration-seconds" // the lifetime that is asked for every token
	RequireHeader          = Prefix + "require-header"           // "true": ask for the header "Metadata: true"
	HopLimit               = Prefix + "hop-limit"                // the TTL of the server's answers
)

// Annotations that the webhook writes on an instance. KubeVirt copies them to the pod.
const (
	Wiring          = VerdictPrefix + "wiring"      // how the guest reaches IMDS: one of the Wiring values
	PreferredBridge = VerdictPrefix + "bridge-name" // that KubeVirt makes for the NIC to be served
	Reason          = VerdictPrefix + "reason"      // why the wiring is WiringNone
	RedirectPort    = Prefix + "redirect-port"      // of imds-server, where the wiring is WiringRedirect
)

// Values of Wiring.
const (
	WiringBridge   = "bridge"   // by a bridge in the pod
	WiringRedirect = "redirect" // by passt, from inside the pod
	WiringNone     = "none"     // not at all
)

// Annotations that the webhook writes on a pod, over whatever is there.
const (
	Injected    = Prefix + "injected"     // "true": the pod is patched
	NotInjected = Prefix + "not-injected" // why a pod that asks for IMDS has not got it
	Warnings    = Prefix + "warnings"     // which annotations are not taken as they were written
	WiredBy     = Prefix + "wired-by"     // who wires the pod's network: one of the WiredBy values
	Version     = Prefix + "version"      // of the webhook that has patched the pod
	VMName      = Prefix + "vm-name"      // the full name of the pod's VirtualMachineInstance
	VMIUID      = Prefix + "vmi-uid"      // its UID
)

// Values of WiredBy.
const (
	WiredBySidecar   = "sidecar"    // imds-init in the pod
	WiredByNodeAgent = "node-agent" // imds-init agent on the node
)

// ByUser returns the names that a user may set.
func ByUser() []string {
	var names []string
	for _, rule := range rules {
		names = append(names, rule.name)
	}
	return names
}

// Verdict returns the names that the webhook writes on an instance.
func Verdict() []string { return []string{Wiring, PreferredBridge, Reason, RedirectPort} }

// OnPod returns the names that the webhook writes on a pod alone.
func OnPod() []string {
	return []string{Injected, NotInjected, Warnings, WiredBy, Version, VMName, VMIUID}
}

// All returns every name of this project.
func All() []string { return slices.Concat(ByUser(), Verdict(), OnPod()) }
