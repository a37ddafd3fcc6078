// Package annotation holds the names and the rules of the imds.kubevirt.io/
// annotations: what a user may write on a VirtualMachine, its template or a
// VirtualMachineInstance, and what only the webhooks write.
package annotation

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Prefix begins the name of every annotation of this project.
const Prefix = "imds.kubevirt.io/"

// Annotations that a user may set. KubeVirt copies them from the VM's template
// to the virt-launcher pod.
const (
	// Enabled turns IMDS on for the VM: "true" or "false".
	Enabled = Prefix + "enabled"
	// BridgeName is the Linux bridge in the pod that the VM's NIC is on; without
	// it imds-init finds the bridge by itself.
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

// Annotations that the webhook writes on the pod, over whatever is there.
const (
	// Injected is "true" on a pod that the webhook has patched.
	Injected = Prefix + "injected"
	// VMName is the full name of the pod's VirtualMachineInstance.
	VMName = Prefix + "vm-name"
	// VMIUID is the UID of the pod's VirtualMachineInstance.
	VMIUID = Prefix + "vmi-uid"
)

// RedirectPort is the TCP port of imds-server for a VM whose pod network is bound
// by passt. The webhook writes it on the VirtualMachineInstance, the last object
// that tells the binding, and KubeVirt copies it to the pod.
const RedirectPort = Prefix + "redirect-port"

var writtenByWebhook = []string{Injected, VMName, VMIUID, RedirectPort}

// WrittenByUser returns the imds.kubevirt.io/ annotations that are not the
// webhook's own.
func WrittenByUser(annotations jsontree.Object) jsontree.Object {
	own := Select(annotations)
	for _, name := range writtenByWebhook {
		delete(own, name)
	}
	return own
}

// Select returns the imds.kubevirt.io/ annotations.
func Select(annotations jsontree.Object) jsontree.Object {
	selected := jsontree.Object{}
	for name, value := range annotations {
		if strings.HasPrefix(name, Prefix) {
			selected[name] = value
		}
	}
	return selected
}

// IsEnabled reports whether the annotations ask for IMDS. The problem is not
// empty when the value is neither "true" nor "false".
func IsEnabled(annotations jsontree.Object) (enabled bool, problem string) {
	value, found := annotations[Enabled]
	if !found {
		return false, ""
	}
	return value == "true", checkValue(Enabled, value)
}

// RedirectPortProblem says what is wrong with the RedirectPort of a pod; empty
// when it has none or all is well.
func RedirectPortProblem(annotations jsontree.Object) string {
	value, found := annotations[RedirectPort]
	if !found {
		return ""
	}
	return redirectPort.check(value)
}

// Problems returns one sentence for each imds.kubevirt.io/ annotation that a
// user may not set so, sorted by name; none when all is well.
func Problems(annotations jsontree.Object) []string {
	own := Select(annotations)
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if problem := check(name, own[name]); problem != "" {
			problems = append(problems, problem)
		}
	}
	return problems
}

// maxProblems keeps a message readable and its size bounded: there are six
// names to get wrong, and as many unknown ones as an object has room for.
const maxProblems = 12

// Join makes one message of problems.
func Join(problems []string) string {
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(slices.Clone(problems[:maxProblems]), "and "+strconv.Itoa(more)+" more")
	}
	return strings.Join(problems, "; ")
}

// Settings are the annotations that change the injected pod itself. The others
// reach the sidecars by the downward API.
type Settings struct {
	// TokenAudiences is in the order the user wrote.
	TokenAudiences []string
	// TokenExpirationSeconds is the number's text; empty when not set.
	TokenExpirationSeconds string
}

// ParseSettings reads annotations in which Problems found nothing.
func ParseSettings(annotations jsontree.Object) Settings {
	var settings Settings
	if list, ok := annotations[TokenAudiences].(string); ok {
		settings.TokenAudiences = splitAudiences(list)
	}
	settings.TokenExpirationSeconds, _ = annotations[TokenExpirationSeconds].(string)
	return settings
}
