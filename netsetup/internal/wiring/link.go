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
// pod's interface (GenerateTapDeviceName in the same file).
const podNetworkTap = "tap0"

// uplinkSuffix ends the name that KubeVirt gives to a pod's own interface
// when it makes it a port of the bridge (GenerateNewBridgedVmiInterfaceName).
const uplinkSuffix = "-nic"

// isVMBridge says whether the endpoint may be joined to this link: the bridge
// of the given name, or, where that is empty, any bridge of KubeVirt's.
func (l Link) isVMBridge(name string) bool {
	if name != "" {
		return l.Kind == "bridge" && l.Name == name
	}
	return l.Kind == "bridge" && strings.HasPrefix(l.Name, bridgePrefix)
}

// isGuestOf says whether a guest's NIC is behind this port of the bridge: it
// has one of the names that KubeVirt gives to the bridge's tap, or it is some
// other tap and no uplink. What is not surely a guest is never served.
func (l Link) isGuestOf(bridge Link) bool {
	if l.Name == podNetworkTap || l.Name == secondaryTap(bridge.Name) {
		return true
	}
	return l.Kind == "tun" && !l.isUplink()
}

// isUplink says whether this port of a VM's bridge leads out of the pod.
func (l Link) isUplink() bool { return strings.HasSuffix(l.Name, uplinkSuffix) }

// secondaryTap is the tap of the bridge of a secondary network. Both are named
// after the pod's interface: pod16477688c0e gives k6t-16477688c0e and
// tap16477688c0e, and the older net1 gives k6t-net1 and tap1.
func secondaryTap(bridge string) string {
	of := strings.TrimPrefix(bridge, bridgePrefix)
	return "tap" + strings.TrimPrefix(of, "net")
}
