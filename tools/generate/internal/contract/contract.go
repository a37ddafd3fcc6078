// Package contract is the one source of what the generated manifests state:
// names, ports, paths, annotations and resources. The binaries have constants of
// their own, since they share no code; the tests of tools/generate run them on
// the rendered manifests to show that both say the same.
package contract

// Names of the webhook's own objects.
const (
	// Namespace is where the webhook runs, unless the user says otherwise.
	Namespace = "kubevirt-imds"
	// Webhook names the Deployment, the Service, the ServiceAccount and the
	// MutatingWebhookConfiguration.
	Webhook = "imds-webhook"
	// PatchesConfigMap holds the change to a VM's pod, one file a key.
	PatchesConfigMap = "imds-sidecar"
	// ServicePort is where the API server finds the webhook.
	ServicePort = 443
)

// Paths of the webhook's reviews.
const (
	MutatePodPath                    = "/mutate-pod"
	MutateVirtualMachinePath         = "/mutate-virtualmachine"
	MutateVirtualMachineInstancePath = "/mutate-virtualmachineinstance"
)

// Annotations. The first three are the webhook's to write, on the pod, and the
// next three on the VirtualMachineInstance.
const (
	AnnotationDomain = "imds.kubevirt.io"
	AnnotationPrefix = AnnotationDomain + "/"

	Injected = AnnotationPrefix + "injected"
	VMName   = AnnotationPrefix + "vm-name"
	VMIUID   = AnnotationPrefix + "vmi-uid"

	RedirectPort      = AnnotationPrefix + "redirect-port"
	VerdictWiring     = "verdict." + AnnotationPrefix + "wiring"
	VerdictBridgeName = "verdict." + AnnotationPrefix + "bridge-name"

	Enabled                = AnnotationPrefix + "enabled"
	Network                = AnnotationPrefix + "network"
	BridgeName             = AnnotationPrefix + "bridge-name"
	TokenAudiences         = AnnotationPrefix + "token-audiences"
	TokenExpirationSeconds = AnnotationPrefix + "token-expiration-seconds"
	RequireHeader          = AnnotationPrefix + "require-header"
	HopLimit               = AnnotationPrefix + "hop-limit"
)

// UserAnnotations are those that a user may set.
var UserAnnotations = []string{Enabled, Network, BridgeName, TokenAudiences, TokenExpirationSeconds, RequireHeader, HopLimit}

// Sidecar is a container that the webhook adds to a VM's pod.
type Sidecar struct {
	// Name is the container's name and that of its binary in the image.
	Name string
	// UID is its user and its group.
	UID int
	// CPU and Memory are both requested and the limit: a pod with dedicated
	// CPUs stays Guaranteed.
	CPU, Memory string
}

// The two sidecars. What they are given was measured under these limits: with
// less CPU imds-init wires a guest in 190 ms instead of 8, and a flood by the
// guest comes near the liveness probe's 5 s; imds-init peaks at 5 MB, imds-server
// with a probe beside it at 13 MB, and up to 8 MB of socket buffers come on top.
var (
	Init   = Sidecar{Name: "imds-init", UID: 0, CPU: "50m", Memory: "16Mi"}
	Server = Sidecar{Name: "imds-server", UID: 65532, CPU: "50m", Memory: "32Mi"}
)

// Where imds-server finds its token, and where it listens.
const (
	TokenVolume = "imds-token"
	TokenFolder = "/var/run/secrets/tokens"
	TokenFile   = "token"
	// TokenSeconds is the lifetime of a token, unless the VM says otherwise.
	TokenSeconds = 3600
	// ServerPort is below 1024: a sysctl opens it to a user without a
	// capability.
	ServerPort = 80
)
