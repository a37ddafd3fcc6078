package patchset

import (
	"slices"
	"strconv"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// portStart is the first port that a process without privileges may bind.
const portStart = "net.ipv4.ip_unprivileged_port_start"

// sysctl is one element of spec.securityContext.sysctls. Strategic merge
// replaces that list as a whole, which would drop the pod's own sysctls, so
// the Set takes the patches' sysctls out and merges them by name.
type sysctl struct {
	name, value string
}

// takeSysctls removes the sysctls from patch, which has passed decodePatch.
func takeSysctls(patch jsontree.Object) []sysctl {
	securityContext := jsontree.LookupObject(patch, "spec", "securityContext")
	list, _ := jsontree.LookupList(securityContext, "sysctls")
	delete(securityContext, "sysctls")
	if securityContext != nil && len(securityContext) == 0 {
		delete(jsontree.LookupObject(patch, "spec"), "securityContext")
	}
	var taken []sysctl
	for _, element := range list {
		object, _ := element.(jsontree.Object)
		taken = append(taken, sysctl{
			name:  jsontree.LookupString(object, "name"),
			value: jsontree.LookupString(object, "value"),
		})
	}
	return taken
}

// mergeSysctls sets the sysctls on pod and keeps the pod's others.
func mergeSysctls(pod jsontree.Object, sysctls []sysctl) error {
	if len(sysctls) == 0 {
		return nil
	}
	securityContext, err := jsontree.Ensure(pod, "spec", "securityContext")
	if err != nil {
		return err
	}
	list, err := jsontree.LookupList(securityContext, "sysctls")
	if err != nil {
		return err
	}
	for _, wanted := range sysctls {
		i := slices.IndexFunc(list, func(element any) bool {
			object, _ := element.(jsontree.Object)
			return jsontree.LookupString(object, "name") == wanted.name
		})
		if i < 0 {
			list = append(list, jsontree.Object{"name": wanted.name, "value": wanted.value})
			continue
		}
		existing := list[i].(jsontree.Object)
		if !satisfies(wanted, jsontree.LookupString(existing, "value")) {
			existing["value"] = wanted.value
		}
	}
	securityContext["sysctls"] = list
	return nil
}

// satisfies reports whether the pod's own value does what the wanted one is
// for: a port range that begins lower holds the wanted one.
func satisfies(wanted sysctl, existing string) bool {
	if wanted.name != portStart {
		return existing == wanted.value
	}
	has, errHas := strconv.ParseUint(existing, 10, 16)
	needs, errNeeds := strconv.ParseUint(wanted.value, 10, 16)
	return errHas == nil && errNeeds == nil && has <= needs
}
