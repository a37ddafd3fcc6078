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
	Guests  []Link   // the bridge's ports that lead to a guest, by name
	Uplinks []string // names of its ports that lead out of the pod, to be isolated from the endpoint, sorted
	MTU     int      // of the endpoint, in bytes: the least of the bridge's ports'
	Waiting string   // without a bridge: what is missing

	// Exclusive: the user has named the network that is served, so that questions by
	// others are theirs.
	Exclusive bool

	OtherPorts   []string // names of the ports of the pod's other bridges, sorted
	OtherGuests  []Link   // those of them that lead to a guest, by name
	OtherUplinks []string // those of them that lead out of the pod, sorted
}

// Joined says whether there is a bridge to join the endpoint to.
func (w Wiring) Joined() bool { return w.Bridge.Name != "" }

// Redirected says whether the guest's questions come from inside the pod.
func (w Wiring) Redirected() bool { return w.RedirectPort != 0 }

// Redirect is the wiring for a VM whose pod network is bound by passt. It needs
// nothing that KubeVirt makes, and joins the endpoint to no bridge of the VM's
// other networks: the rules know a guest by one way only.
func Redirect(port uint16) Wiring { return Wiring{RedirectPort: port} }

// Plan decides from the links of the pod and the name of the bridge to use. Where
// bridgeName is empty the preferred bridge is taken if it is there, or else the pod
// network's, or that which the endpoint is joined to already, or the first by name, so
// that the pod after a live migration chooses as this one does. A bridge counts only
// once a guest's tap is its port: before that KubeVirt is still making it, and would
// hand on the endpoint's MAC if it were the only port.
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
		slices.Sort(guestless)
		return Wiring{Waiting: missing(bridgeName, guestless, links)}
	}
	joined := 0
	if i := slices.IndexFunc(links, func(l Link) bool { return l.Name == Port }); i >= 0 {
		joined = links[i].Master
	}
	w := slices.MinFunc(joinable, func(a, b Wiring) int {
		return cmp.Or(
			first(a.Bridge.Name == preferred, b.Bridge.Name == preferred),
			first(onPodNetwork(a), onPodNetwork(b)),
			first(a.Bridge.Index == joined, b.Bridge.Index == joined),
			cmp.Compare(a.Bridge.Name, b.Bridge.Name),
		)
	})
	w.others(links)
	return w
}

// join sorts the ports of a bridge. The endpoint takes their least MTU, not the
// bridge's: a bridge whose MTU nobody set has the least of its ports', and would be
// held down by the endpoint's.
func join(bridge Link, links []Link) Wiring {
	w := Wiring{Bridge: bridge}
	for _, port := range links {
		if port.Master != bridge.Index || port.Name == Port {
			continue
		}
		if port.isGuestOf(bridge) {
			w.Guests = append(w.Guests, port)
		} else if port.isUplink() {
			w.Uplinks = append(w.Uplinks, port.Name)
		}
		if w.MTU == 0 || port.MTU < w.MTU {
			w.MTU = port.MTU
		}
	}
	slices.SortFunc(w.Guests, byName)
	slices.Sort(w.Uplinks)
	return w
}

// others sorts the ports of the pod's other bridges.
func (w *Wiring) others(links []Link) {
	for _, bridge := range links {
		if bridge.Kind != "bridge" || bridge.Index == w.Bridge.Index {
			continue
		}
		for _, port := range links {
			if port.Master != bridge.Index || port.Name == Port {
				continue
			}
			w.OtherPorts = append(w.OtherPorts, port.Name)
			if !bridge.isVMBridge("") {
				continue
			}
			if port.isGuestOf(bridge) {
				w.OtherGuests = append(w.OtherGuests, port)
			} else if port.isUplink() {
				w.OtherUplinks = append(w.OtherUplinks, port.Name)
			}
		}
	}
	slices.Sort(w.OtherPorts)
	slices.Sort(w.OtherUplinks)
	slices.SortFunc(w.OtherGuests, byName)
}

func byName(a, b Link) int { return cmp.Compare(a.Name, b.Name) }

// Names are the names of links.
func Names(links []Link) []string {
	names := make([]string, len(links))
	for i, link := range links {
		names[i] = link.Name
	}
	return names
}

// first compares so that what holds comes first.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func onPodNetwork(w Wiring) bool {
	return slices.ContainsFunc(w.Guests, func(l Link) bool { return l.Name == podNetworkTap })
}

func missing(bridgeName string, guestless []string, links []Link) string {
	if len(guestless) > 0 {
		return fmt.Sprintf("a guest's tap on bridge %s", strings.Join(guestless, ", "))
	}
	if bridgeName == "" {
		return fmt.Sprintf("a bridge named %s*", bridgePrefix)
	}
	var others []string
	for _, link := range links {
		if link.isVMBridge("") {
			others = append(others, link.Name)
		}
	}
	if slices.Sort(others); len(others) > 0 {
		return fmt.Sprintf("a bridge named %s, as the VM's annotation has it; there are %s", bridgeName, strings.Join(others, ", "))
	}
	return fmt.Sprintf("a bridge named %s", bridgeName)
}
