package network

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// iface is one network interface of a VM (kubevirt.io/api/core/v1.Interface).
type iface struct {
	fields jsontree.Object
}

func interfacesOf(spec jsontree.Object) []iface {
	list, _ := jsontree.LookupList(spec, "domain", "devices", "interfaces")
	var all []iface
	for _, element := range list {
		fields, _ := element.(jsontree.Object)
		all = append(all, iface{fields})
	}
	return all
}

func (i iface) name() string { return jsontree.LookupString(i.fields, "name") }

// isPasst knows the three ways in which KubeVirt's API has named passt: the core
// binding passtBinding, before it the network binding plugin of that name, and
// before that the core binding passt, which KubeVirt 1.3 removed.
func (i iface) isPasst() bool {
	return i.has("passtBinding") || i.has("passt") || jsontree.LookupString(i.fields, "binding", "name") == "passt"
}

// beyondThePod returns the binding of an interface that passes the pod's network
// by, where IMDS cannot be: hardware, or a device of the pod's own that QEMU
// takes as a whole, or user-mode networking that knows no such address.
func (i iface) beyondThePod() string {
	for _, binding := range []string{"sriov", "macvtap", "slirp"} {
		if i.has(binding) {
			return binding
		}
	}
	return ""
}

func (i iface) has(binding string) bool { return jsontree.LookupObject(i.fields, binding) != nil }

// listsPort reports whether the VM wants this port on the interface, of whatever
// protocol.
func (i iface) listsPort(port uint16) bool {
	ports, _ := jsontree.LookupList(i.fields, "ports")
	for _, element := range ports {
		fields, _ := element.(jsontree.Object)
		number, _ := fields["port"].(json.Number)
		if number.String() == strconv.Itoa(int(port)) {
			return true
		}
	}
	return false
}

func listPort(all []iface, port uint16) bool {
	for _, i := range all {
		if i.listsPort(port) {
			return true
		}
	}
	return false
}

// named lists the names of some interfaces for a message.
func named(all []iface, is func(iface) bool) string {
	var names []string
	for _, i := range all {
		if is(i) {
			names = append(names, i.name())
		}
	}
	if names == nil {
		return ""
	}
	return annotation.Quote(strings.Join(names, ", "))
}

// primaryNetwork returns the name of the network in which the pod has its
// default route: the pod network, or what Multus puts in its place; empty when
// the VM has none.
func primaryNetwork(spec jsontree.Object) string {
	networks, _ := jsontree.LookupList(spec, "networks")
	for _, element := range networks {
		network, _ := element.(jsontree.Object)
		if jsontree.LookupObject(network, "pod") != nil || jsontree.Lookup(network, "multus", "default") == true {
			return jsontree.LookupString(network, "name")
		}
	}
	return ""
}
