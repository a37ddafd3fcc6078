package pod

import (
	"fmt"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// refusal says why the sidecars must not go into this pod; empty when they
// may. Nothing that KubeVirt renders is refused here: these are pods that
// somebody made to look like it.
func refusal(pod jsontree.Object, names names) string {
	// Merged into a container that is there already, the patches would give
	// their capabilities to its image and command.
	for _, reserved := range []string{patchset.InitContainer, patchset.ServerContainer} {
		if slices.Contains(names.containers, reserved) {
			return fmt.Sprintf("the container name %s is reserved for the IMDS sidecars: rename the pod's own container", reserved)
		}
	}
	if slices.Contains(names.volumes, patchset.TokenVolume) {
		return fmt.Sprintf("the volume name %s is reserved for the IMDS sidecars: rename the pod's own volume", patchset.TokenVolume)
	}
	// With the node's network, imds-init would wire the node. In a shared
	// process namespace the other containers reach the token by /proc.
	for _, field := range []string{"hostNetwork", "hostPID", "shareProcessNamespace"} {
		if jsontree.Lookup(pod, "spec", field) == true {
			return fmt.Sprintf("spec.%s is true: IMDS needs a pod with namespaces of its own", field)
		}
	}
	return ""
}

// instance is the VirtualMachineInstance that a pod runs.
type instance struct {
	name, uid string
}

// instanceOf reads the pod's controller. The labels would not do: KubeVirt
// cuts the name there, or puts the hostname in its place.
func instanceOf(pod jsontree.Object) (instance, bool) {
	owners, _ := jsontree.LookupList(pod, "metadata", "ownerReferences")
	for _, element := range owners {
		owner, _ := element.(jsontree.Object)
		group, _, _ := strings.Cut(jsontree.LookupString(owner, "apiVersion"), "/")
		if owner["controller"] != true || group != "kubevirt.io" || owner["kind"] != "VirtualMachineInstance" {
			continue
		}
		found := instance{
			name: jsontree.LookupString(owner, "name"),
			uid:  jsontree.LookupString(owner, "uid"),
		}
		return found, found.name != "" && found.uid != ""
	}
	return instance{}, false
}
