package review

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// wiring is how the guest reaches IMDS, by the spec of its instance, which pods do not carry.
type wiring struct {
	redirectPort int       // of imds-server where passt binds the pod network; 0: the guest comes by a bridge
	bridge       string    // that KubeVirt makes for the interface to be served
	problems     sentences // why IMDS cannot work so
	warnings     sentences // what the VM's owner may not expect
}

type sentences []string

func (s *sentences) add(format string, args ...any) { *s = append(*s, fmt.Sprintf(format, args...)) }

// iface is one network interface of a VM (kubevirt.io/api/core/v1.Interface).
type iface struct {
	name    string
	binding string // a value of bindings, or unknown
	plugin  string // the unknown one
	port80  bool   // the VM lists it
}

// How an interface is bound, by a field or a plugin of that name (plugins since KubeVirt 1.3).
var bindings = map[string]string{
	"masquerade": "bridge", "bridge": "bridge", "managedTap": "bridge", "managedtap": "bridge", "l2bridge": "bridge", // with the guest's tap
	"passtBinding": "passt", "passt": "passt", // sockets of the pod
	"sriov": "sriov", "macvtap": "macvtap", "slirp": "slirp", // not by the pod, where IMDS is
}

func (i iface) isPasst() bool { return i.binding == "passt" }

func (i iface) hasBridge() bool {
	return i.binding == "" || i.binding == "bridge" || i.binding == "unknown"
}

const (
	maxInterfaces = 256 // more than a machine has slots for
	maxNameLength = 63
	// The first that the VM does not list is taken. All are in ip_local_port_range, which passt leaves out when
	// it binds all ports for the VM.
	firstRedirectPort = 60080
	lastRedirectPort  = 60999
)

// nics are the network interfaces of a VM that stay.
type nics struct {
	list    []iface
	primary string                                         // the network with the pod's default route; empty: none
	listed  [lastRedirectPort - firstRedirectPort + 1]bool // which ports from firstRedirectPort on the VM wants
	none    bool                                           // the VM has no interface, and wants none
}

func readNICs(spec jsontree.Value) *nics {
	n := new(nics)
	devices, leaving := spec.Get("domain", "devices"), false
	for value := range devices.Get("interfaces").Elements() {
		// What is being unplugged is no way to anywhere.
		if value.Get("state").String() == "absent" {
			leaving = true
		} else if len(n.list) < maxInterfaces {
			n.list = append(n.list, n.read(value))
		}
	}
	// Without a list KubeVirt adds an interface of its own.
	n.none = len(n.list) == 0 && (leaving || string(devices.Get("autoattachPodInterface").Raw()) == "false")
	for network := range spec.Get("networks").Elements() {
		if n.primary == "" && (network.Get("pod").IsObject() || network.Get("multus", "default").IsTrue()) {
			n.primary = network.Get("name").String()
		}
	}
	return n
}

func (n *nics) read(value jsontree.Value) iface {
	i := iface{name: value.Get("name").String()}
	for key, field := range value.Members() {
		if binding := bindings[string(key)]; binding != "" && field.IsObject() {
			i.binding = binding
		}
	}
	if plugin := value.Get("binding", "name").String(); plugin != "" {
		if i.binding = bindings[plugin]; i.binding == "" && strings.Contains(strings.ToLower(plugin), "passt") {
			i.binding = "passt"
		} else if i.binding == "" {
			i.binding, i.plugin = "unknown", plugin
		}
	}
	for port := range value.Get("ports").Elements() {
		number, err := strconv.Atoi(string(port.Get("port").Raw()))
		i.port80 = i.port80 || number == 80
		if err == nil && firstRedirectPort <= number && number <= lastRedirectPort {
			n.listed[number-firstRedirectPort] = true
		}
	}
	return i
}

// wiring judges a subject; the zero value when it does not ask for IMDS.
func (s subject) wiring() (w wiring) {
	if !s.meant.ask() {
		return w
	}
	for volume := range s.spec.Get("volumes").Elements() {
		if name := jsontree.Name(volume); slices.Contains(patchset.Volumes, name) {
			w.problems.add(volumeProblem, name)
			break
		}
	}
	if s.spec.Get("dnsPolicy").String() == "Default" {
		w.warnings.add("dnsPolicy Default gives the guest the node's name servers: where that is 169.254.169.254, as on some clouds, IMDS hides it from the guest: use another dnsPolicy there")
	}
	n := readNICs(s.spec)
	switch {
	case n.none:
		w.problems.add("the VM has no network interface through which its guest could ask: add one, or remove %s", annotation.Enabled)
	case len(n.list) > 0 && !slices.ContainsFunc(n.list, func(i iface) bool { return i.isPasst() || i.hasBridge() }):
		var found []string
		for _, i := range n.list {
			found = append(found, i.binding)
		}
		slices.Sort(found)
		w.problems.add("IMDS cannot serve this VM: its interfaces are bound by %s only, which bypass the pod's network: use masquerade, bridge or passt for one of them, or remove %s",
			strings.Join(slices.Compact(found), ", "), annotation.Enabled)
	case n.isRedirected():
		w.redirect(n, s.meant)
	default:
		w.join(n, s.meant)
	}
	return w
}

// isRedirected reports whether the guest comes by passt: its default route is in the pod network; a VM
// without that network asks by any interface.
func (n *nics) isRedirected() bool {
	if i := n.index(n.primary); i >= 0 && n.primary != "" {
		return n.list[i].isPasst()
	}
	return slices.ContainsFunc(n.list, iface.isPasst)
}

func (w *wiring) redirect(n *nics, meant annotations) {
	if free := slices.Index(n.listed[:], false); free >= 0 {
		w.redirectPort = firstRedirectPort + free
	} else {
		w.problems.add("the VM lists all ports that IMDS could use: remove one from %d to %d", firstRedirectPort, lastRedirectPort)
	}
	if meant.has(annotation.HopLimit) {
		// It would be a protection that is not there.
		w.problems.add("annotation %s has no effect on a VM whose pod network is bound by passt, which sends the answers on with a TTL of its own: remove it, and consider %s", annotation.HopLimit, annotation.RequireHeader)
	}
	for _, name := range []string{annotation.BridgeName, annotation.Network} {
		if meant.has(name) && meant.text(name) != n.primary {
			w.problems.add("annotation %s has no effect on a VM whose pod network is bound by passt, where IMDS is on no bridge: remove it", name)
		}
	}
	if isOther := func(i iface) bool { return !i.isPasst() }; slices.ContainsFunc(n.list, isOther) {
		w.warnings.add("IMDS serves the guest through passt only, not on its interfaces %s", n.named(isOther))
	}
}

func (w *wiring) join(n *nics, meant annotations) {
	for _, i := range n.list {
		switch {
		// Where the VM lists that port, passt would end, and the VM with it.
		case i.isPasst() && i.port80:
			w.problems.add("the interface %s uses passt and lists port 80, which IMDS needs in the pod: use passt for the pod network too, or another binding here, or remove that port", annotation.Quote(i.name))
		case i.binding == "unknown":
			w.warnings.add("IMDS does not know the binding plugin %s of the interface %s: it serves the guest there only if the plugin makes a bridge with a tap, and it takes port 80 of the pod",
				annotation.Quote(i.plugin), annotation.Quote(i.name))
		}
	}
	if len(w.problems) == 0 && slices.ContainsFunc(n.list, iface.isPasst) {
		w.warnings.add("IMDS takes port 80 from the VM on the interfaces that use passt: %s", n.named(iface.isPasst))
	}
	wanted := meant.text(annotation.Network)
	if wanted == "" {
		w.bridge = n.bridgeOf(n.first())
		return
	}
	w.bridge = n.bridgeOf(wanted)
	i := n.index(wanted)
	switch {
	case meant.has(annotation.BridgeName):
		w.problems.add("annotations %s and %s both say what to serve: remove one", annotation.Network, annotation.BridgeName)
	case i < 0:
		w.problems.add("annotation %s: %s is not a network of the VM that has an interface: want one of %s", annotation.Network, annotation.Quote(wanted), n.named(iface.hasBridge))
	case !n.list[i].hasBridge():
		w.problems.add("annotation %s: the interface %s is bound by %s, which makes no bridge in the pod: want one of %s", annotation.Network, annotation.Quote(wanted), n.list[i].binding, n.named(iface.hasBridge))
	}
}

// first returns the network to be served where nobody says which, the same one for a migration's target.
func (n *nics) first() string {
	first := slices.IndexFunc(n.list, iface.hasBridge)
	if i := n.index(n.primary); first < 0 || i >= 0 && n.list[i].hasBridge() {
		return n.primary // without a list KubeVirt adds its interface
	}
	return n.list[first].name
}

// bridgeOf is how KubeVirt names a bridge (pkg/network/link and pkg/network/namescheme).
func (n *nics) bridgeOf(network string) string {
	if network == n.primary {
		return "k6t-eth0"
	}
	return fmt.Sprintf("k6t-%x", sha256.Sum256([]byte(network)))[:len("k6t-")+11]
}

func (n *nics) index(name string) int {
	return slices.IndexFunc(n.list, func(i iface) bool { return i.name == name })
}

// named lists the names of some interfaces for a message.
func (n *nics) named(is func(iface) bool) string {
	var names []string
	for _, i := range n.list {
		if is(i) {
			names = append(names, i.name)
		}
	}
	return annotation.Quote(strings.Join(names, ", "))
}
