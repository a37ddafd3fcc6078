// Package wiring decides how a pod's links have to be joined so that the
// guest, and nobody else, reaches the metadata service. It touches nothing:
// it is a function from the links that are there to the wiring that should be.
package wiring

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Wiring is what the pod's network should be. The zero value joins the
// endpoint to nothing.
type Wiring struct {
	// RedirectPort is the TCP port at which the server listens where the VM's
	// pod network is bound by passt, whose questions come from inside the pod;
	// 0 where they come by a bridge.
	RedirectPort uint16

	Bridge  Link     // the VM's bridge that the endpoint is joined to; no name: none
	Guests  []string // names of the bridge's ports that lead to a guest, sorted
	Uplinks []string // names of its other ports, to be isolated from the endpoint, sorted
	IPv6    bool     // the pod speaks IPv6, so the endpoint has its IPv6 address too
	MTU     int      // of the endpoint, in bytes: the least of those ports'
	Waiting string   // without a bridge: what is missing
}

// Joined says whether there is a bridge to join the endpoint to.
func (w Wiring) Joined() bool { return w.Bridge.Name != "" }

// Redirected says whether the guest's questions come from inside the pod.
func (w Wiring) Redirected() bool { return w.RedirectPort != 0 }

// Redirect is the wiring for a VM whose pod network is bound by passt. It needs
// nothing that KubeVirt makes, and joins the endpoint to no bridge of the VM's
// other networks: the rules know a guest by one way only.
func Redirect(port uint16) Wiring { return Wiring{RedirectPort: port} }

// Plan decides from the links of the pod and the name of the bridge to use.
// Where bridgeName is empty the preferred bridge is taken if it is there, or else
// the pod network's or, for a VM without a pod network, the bridge with a guest
// that was made first. A bridge counts only once a guest's tap is its port: before
// that KubeVirt is still making it, and would hand on the endpoint's MAC if it were
// the only port.
func Plan(links []Link, bridgeName, preferred string) Wiring {
	var joinable []Wiring
	var guestless []string
	for _, link := range links {
		if !link.isVMBridge(bridgeName) {
			continue
		}
		w := join(link, links)
		if len(w.Guests) == 0 {
			guestless = append(guestless, link.Name)
			continue
		}
		joinable = append(joinable, w)
	}
	if len(joinable) == 0 {
		return Wiring{Waiting: missing(bridgeName, guestless)}
	}
	if i := slices.IndexFunc(joinable, func(w Wiring) bool { return w.Bridge.Name == preferred }); i >= 0 {
		return joinable[i]
	}
	return slices.MinFunc(joinable, byPreference)
}

// join sorts the ports of a bridge into guests and uplinks. The endpoint takes
// their least MTU, not the bridge's: a bridge whose MTU nobody set has the
// least of its ports', and would be held down by the endpoint's.
func join(bridge Link, links []Link) Wiring {
	w := Wiring{Bridge: bridge}
	for _, port := range links {
		if port.Master != bridge.Index || port.Name == Port {
			continue
		}
		if port.isGuestOf(bridge) {
			w.Guests = append(w.Guests, port.Name)
		} else {
			w.Uplinks = append(w.Uplinks, port.Name)
		}
		if w.MTU == 0 || port.MTU < w.MTU {
			w.MTU = port.MTU
		}
	}
	slices.Sort(w.Guests)
	slices.Sort(w.Uplinks)
	return w
}

// byPreference puts the pod network's bridge first, then the older one.
func byPreference(a, b Wiring) int {
	if onPodNetwork(a) != onPodNetwork(b) {
		if onPodNetwork(a) {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.Bridge.Index, b.Bridge.Index)
}

func onPodNetwork(w Wiring) bool { return slices.Contains(w.Guests, podNetworkTap) }

func missing(bridgeName string, guestless []string) string {
	if len(guestless) > 0 {
		return fmt.Sprintf("a guest's tap on bridge %s", strings.Join(guestless, ", "))
	}
	if bridgeName != "" {
		return fmt.Sprintf("a bridge named %s", bridgeName)
	}
	return fmt.Sprintf("a bridge named %s*", bridgePrefix)
}
