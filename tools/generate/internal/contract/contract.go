// Package contract is the one source of what the generated manifests state:
// names, ports, paths and resources; the annotations are in injector/annotation. The binaries have constants of
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
	// NodeAgent names the DaemonSet and its ServiceAccount, which are in NodeNamespace.
	NodeAgent     = "imds-node-agent"
	NodeNamespace = Namespace + "-node"
	// ServicePort is where the API server finds the webhook.
	ServicePort = 443
)

// Paths of the webhook's reviews.
const (
	MutatePodPath                    = "/mutate-pod"
	MutateVirtualMachinePath         = "/mutate-virtualmachine"
	MutateVirtualMachineInstancePath = "/mutate-virtualmachineinstance"
	RepairVirtualMachinePath         = "/repair-virtualmachine"
	RepairVirtualMachineInstancePath = "/repair-virtualmachineinstance"
)

// Sidecar is a container that the webhook adds to a VM's pod.
type Sidecar struct {
	// Name is the container's name and that of its binary in the image.
	Name string
	// UID is its user and its group.
	UID int
	// Requests and Limits are for a pod that is not Guaranteed.
	Requests, Limits Resources
}

// Resources are quantities as Kubernetes writes them.
type Resources struct{ CPU, Memory string }

// The two sidecars. What they are given was measured under these limits.
var (
	Init   = Sidecar{Name: "imds-init", UID: 0, Requests: Resources{"5m", "8Mi"}, Limits: Resources{"200m", "16Mi"}}
	Server = Sidecar{Name: "imds-server", UID: 65532, Requests: Resources{"5m", "8Mi"}, Limits: Resources{"200m", "32Mi"}}
)

// Where imds-server listens for the node agent, and by which volume that finds it.
const (
	NodeVolume       = "imds-node"
	NodeSocketFolder = "/run/imds-node"
	NodeSocket       = "imds.sock"
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
