package virtualmachine

import (
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// checkInterfaces looks for interfaces that are bound by passt. passt opens
// the VM's ports in the pod's network namespace; IMDS listens on port 80
// there, so the VM would lose its own. A VM with no other interface is a
// problem: there is not even a bridge to serve. With another one IMDS works,
// and the lost port is worth a warning.
func checkInterfaces(vm jsontree.Object) (problem, warning string) {
	all := interfaces(vm)
	var passt []string
	for _, element := range all {
		if iface, _ := element.(jsontree.Object); isPasst(iface) {
			passt = append(passt, jsontree.LookupString(iface, "name"))
		}
	}
	switch {
	case len(passt) == 0:
		return "", ""
	case len(passt) == len(all):
		return "every interface of the VM uses passt, which IMDS does not support yet: use masquerade or bridge for one of them, or remove imds.kubevirt.io/enabled", ""
	default:
		return "", "IMDS takes port 80 from the VM on the interfaces that use passt: " + annotation.Quote(strings.Join(passt, ", "))
	}
}

// interfaces returns the VM's network interfaces
// (kubevirt.io/api/core/v1.Interface).
func interfaces(vm jsontree.Object) []any {
	list, _ := jsontree.LookupList(vm, "spec", "template", "spec", "domain", "devices", "interfaces")
	return list
}

// isPasst knows the three ways in which KubeVirt's API has named passt.
func isPasst(iface jsontree.Object) bool {
	return jsontree.LookupObject(iface, "passt") != nil ||
		jsontree.LookupObject(iface, "passtBinding") != nil ||
		jsontree.LookupString(iface, "binding", "name") == "passt"
}
