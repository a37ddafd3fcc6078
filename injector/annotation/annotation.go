// Package annotation holds the names and the rules of this project's
// annotations: what a user may write on a VirtualMachine, its template or a
// VirtualMachineInstance, and what only the webhook writes.
package annotation

import "slices"

const (
	// Domain is that of every annotation that a user may set.
	Domain = "imds.kubevirt.io"
	// Prefix begins the names of the annotations that a user may set, and of
	// those that the webhook writes on a pod.
	Prefix = Domain + "/"
	// VerdictPrefix begins the names of what the webhook finds out about an
	// instance. Versions without them take them for somebody else's, so that
	// a rollback refuses nothing.
	VerdictPrefix = "verdict." + Prefix
)

// Annotations that a user may set. KubeVirt copies them from the VM's template
// to the instance and to the virt-launcher pod.
const (
	// Enabled turns IMDS on for the VM: "true" or "false".
	Enabled = Prefix + "enabled"
	// Network names the network in the VM's spec whose interface is served,
	// where it should not be the pod network.
	Network = Prefix + "network"
	// BridgeName is the Linux bridge in the pod that the VM's NIC is on, for
	// those who know better than Network.
	BridgeName = Prefix + "bridge-name"
	// TokenAudiences lists, separated by commas, audiences that each get a
	// projected token of their own.
	TokenAudiences = Prefix + "token-audiences"
	// TokenExpirationSeconds is the lifetime that is asked for every token.
	TokenExpirationSeconds = Prefix + "token-expiration-seconds"
	// RequireHeader makes the server ask for the header "Metadata: true".
	RequireHeader = Prefix + "require-header"
	// HopLimit is the TTL of the server's answers.
	HopLimit = Prefix + "hop-limit"
)

// Annotations that the webhook writes on a VirtualMachineInstance, the last
// object that tells how its NICs are bound. KubeVirt copies them to the pod.
const (
	// Wiring says how the guest reaches IMDS: one of the Wiring values.
	Wiring = VerdictPrefix + "wiring"
	// PreferredBridge is the bridge in the pod that KubeVirt makes for the NIC
	// to be served.
	PreferredBridge = VerdictPrefix + "bridge-name"
	// Reason says why the wiring is WiringNone.
	Reason = VerdictPrefix + "reason"
	// RedirectPort is the TCP port of imds-server where the wiring is
	// WiringRedirect.
	RedirectPort = Prefix + "redirect-port"
)

// Values of Wiring.
const (
	WiringBridge   = "bridge"   // by a bridge in the pod
	WiringRedirect = "redirect" // by passt, from inside the pod
	WiringNone     = "none"     // not at all
)

// Annotations that the webhook writes on a pod, over whatever is there.
const (
	// Injected is "true" on a pod that the webhook has patched.
	Injected = Prefix + "injected"
	// NotInjected says why a pod that asks for IMDS has not got it.
	NotInjected = Prefix + "not-injected"
	// Warnings say which annotations of an injected pod are not as its owner
	// wrote them, and why.
	Warnings = Prefix + "warnings"
	// VMName is the full name of the pod's VirtualMachineInstance.
	VMName = Prefix + "vm-name"
	// VMIUID is the UID of the pod's VirtualMachineInstance.
	VMIUID = Prefix + "vmi-uid"
)

// ByUser returns the names that a user may set.
func ByUser() []string {
	names := make([]string, len(rules))
	for i, rule := range rules {
		names[i] = rule.name
	}
	return names
}

// Verdict returns the names that the webhook writes on an instance.
func Verdict() []string { return []string{Wiring, PreferredBridge, Reason, RedirectPort} }

// OnPod returns the names that the webhook writes on a pod alone.
func OnPod() []string { return []string{Injected, NotInjected, Warnings, VMName, VMIUID} }

// All returns every name of this project.
func All() []string { return slices.Concat(ByUser(), Verdict(), OnPod()) }
