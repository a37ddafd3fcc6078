package patchset

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// portStart is the first port that a process without privileges may bind.
const portStart = "net.ipv4.ip_unprivileged_port_start"

// takeSysctls moves the sysctls from a patch to the set: strategic merge would drop the pod's own.
func (s *Set) takeSysctls(patch jsontree.Object) error {
	securityContext := jsontree.Lookup[jsontree.Object](patch, "spec", "securityContext")
	for i, wanted := range jsontree.Lookup[[]any](securityContext, "sysctls") {
		if object, _ := wanted.(jsontree.Object); len(object) != 2 || jsontree.Name(object) == "" || jsontree.Lookup[string](object, "value") == "" {
			return fmt.Errorf("spec.securityContext.sysctls[%d]: want name and value, and nothing else", i)
		}
		if i := jsontree.IndexOf(s.sysctls, jsontree.Name(wanted)); i >= 0 {
			s.sysctls[i] = wanted
		} else {
			s.sysctls = append(s.sysctls, wanted)
		}
	}
	delete(securityContext, "sysctls")
	if securityContext != nil && len(securityContext) == 0 {
		delete(jsontree.Lookup[jsontree.Object](patch, "spec"), "securityContext")
	}
	return nil
}

// mergeSysctls sets the sysctls on pod and keeps the pod's others. Where the guest is redirected the first port
// stays as it is: KubeVirt's CNI plugin for passt sets it before the runtime writes the pod's, and imds-server
// needs no low port there.
func (s *Set) mergeSysctls(pod jsontree.Object) error {
	isRedirected := jsontree.Lookup[string](pod, "metadata", "annotations", annotation.RedirectPort) != ""
	for _, wanted := range s.sysctls {
		name, value := jsontree.Name(wanted), jsontree.Lookup[string](wanted.(jsontree.Object), "value")
		if isRedirected && name == portStart {
			continue
		}
		securityContext, err := jsontree.Ensure(pod, "spec", "securityContext")
		if err != nil {
			return err
		}
		list, isList := securityContext["sysctls"].([]any)
		if securityContext["sysctls"] != nil && !isList {
			return errors.New("spec.securityContext.sysctls is not a list")
		}
		if own := jsontree.Named(list, name); own == nil {
			securityContext["sysctls"] = append(list, jsontree.Object{"name": name, "value": value})
		} else if !satisfies(name, value, jsontree.Lookup[string](own, "value")) {
			own["value"] = value
		}
	}
	return nil
}

// satisfies reports whether the pod's value does what the wanted one is for: a lower start does too.
func satisfies(name, wanted, existing string) bool {
	if name != portStart {
		return existing == wanted
	}
	has, errHas := strconv.ParseUint(existing, 10, 16)
	needs, errNeeds := strconv.ParseUint(wanted, 10, 16)
	return errHas == nil && errNeeds == nil && has <= needs
}
