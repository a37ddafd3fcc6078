package rules

import "github.com/example/kubevirt-imds/netsetup/internal/wiring"

// A VLAN is another network than the guest's untagged one, with addresses of its
// own: 169.254.169.254 there is somebody else's. Its frames pass as if there were
// no endpoint, and never come near it.

// vlansFromPorts judges the tagged frames that enter the bridge, from which our
// MACs have been dropped as senders. A frame with a priority tag alone is in no
// VLAN, and judged as one without; what hides a second tag behind it, which
// kernels take off as well, has no honest sender.
func vlansFromPorts() (rules []rule) {
	for _, tag := range vlanTags {
		rules = append(rules,
			rule{"no tag behind a priority tag", []part{tagInPriorityTag(tag), drop()}},
			rule{"the endpoint is in no VLAN", []part{inVLAN(tag), etherTarget(wiring.DeviceMAC), drop()}},
			rule{"a VLAN is another network", []part{inVLAN(tag), accept()}},
		)
	}
	return rules
}

// vlansToPorts judges the tagged frames that leave the bridge.
func vlansToPorts() (rules []rule) {
	for _, tag := range vlanTags {
		rules = append(rules,
			rule{"the endpoint is in no VLAN", []part{inVLAN(tag), oifname(wiring.Port), drop()}},
			rule{"a VLAN is another network", []part{inVLAN(tag), accept()}},
		)
	}
	return rules
}
