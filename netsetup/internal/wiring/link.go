package wiring

import "strings"

// Link is what the wiring needs to know of a network interface in the pod.
type Link struct {
	Index  int
	Name   string
	Kind   string // IFLA_INFO_KIND: "bridge", "tun", "veth", ...; "" for hardware
	Master int    // index of the bridge that it is a port of, 0 for none
	MTU    int    // bytes
}

// bridgePrefix begins the name of every bridge that KubeVirt makes for a VM's
// interface (GenerateBridgeName in KubeVirt's pkg/network/link/names.go).
const bridgePrefix = "k6t-"

// podNetworkTap is the tap of the pod's network, whatever the name of the
// pod's interface; taps of secondary networks are numbered or hashed
// (GenerateTapDeviceName in KubeVirt's pkg/network/link/names.go).
const podNetworkTap = "tap0"

// uplinkSuffix ends the name that KubeVirt gives to a pod's own interface
// when it makes it a port of the bridge (GenerateNewBridgedVmiInterfaceName).
// A network attachment can be a tap with a name of the tenant's choice, so
// the suffix decides before the kind does.
const uplinkSuffix = "-nic"

// isVMBridge says whether the endpoint may be joined to this link: the bridge
// of the given name, or, where that is empty, any bridge of KubeVirt's.
func (l Link) isVMBridge(name string) bool {
	if name != "" {
		return l.Kind == "bridge" && l.Name == name
	}
	return l.Kind == "bridge" && strings.HasPrefix(l.Name, bridgePrefix)
}

// isGuest says whether a guest's NIC is behind this bridge port. All that is
// not surely a guest counts as an uplink, which is never served.
func (l Link) isGuest() bool {
	return l.Kind == "tun" && !strings.HasSuffix(l.Name, uplinkSuffix)
}
