package rules

import (
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// devices is the chains of the netdev family, which see what enters one interface
// before anything else does. They need the interfaces, so they come once the
// endpoint is there; without them nothing is open, but a guest that asks for what is
// not ours waits for an answer.
func devices(w wiring.Wiring, node Node, port int) (chains []chain) {
	if w.Redirected() || !w.Joined() {
		return nil
	}
	at := func(device string, rules []rule) {
		chains = append(chains, chain{familyNetdev, "filter", device, netdevIngress, filter, device, rules})
	}
	if node.Refuses {
		at(wiring.Device, refuse(node))
	}
	if node.Leads && len(w.OtherGuests) > 0 {
		at(wiring.Port, []rule{
			to("answer by the NIC that asked", ipSource(address), etherTargetFrom(ledMACs, byTarget), forwardBy(ledNICs, byTarget)),
		})
		for _, tap := range w.OtherGuests {
			at(tap.Name, lead(port))
		}
	}
	return chains
}

// netdevIngress is NF_NETDEV_INGRESS of include/uapi/linux/netfilter.h.
const netdevIngress = 0

func deviceMappings(w wiring.Wiring, node Node) []mapping {
	if w.Redirected() || !w.Joined() || !node.Leads || len(w.OtherGuests) == 0 {
		return nil
	}
	return []mapping{
		{familyNetdev, ledMACs, ipv4Addr, etherAddr, askersLimit, time.Minute},
		{familyNetdev, ledNICs, ipv4Addr, ifaceIndex, askersLimit, time.Minute},
		{familyNetdev, elsewhere, ifaceName, setType{}, 16, 0},
	}
}

// refuse tells a guest at once that what it asks for is not here. The reply goes to
// the MAC that the packet came from. Behind the interface there are guests only.
func refuse(node Node) []rule {
	rules := []rule{
		to("refuse connections to other ports", ipTarget(address), tcpNotTo(guestPort), refuseByReset),
		to("refuse other protocols", ipTarget(address), layer4(expr.CmpOpNeq, unix.IPPROTO_TCP), refuseByUnreachable),
	}
	if node.IPv6 {
		rules = append(rules,
			to("refuse connections to other ports over IPv6", ip6Target(addressIPv6), ip6Next(unix.IPPROTO_TCP), tcpNotTo(guestPort), refuseByReset),
			to("refuse other protocols over IPv6", ip6Target(addressIPv6), ip6NextNot(unix.IPPROTO_TCP), refuseByUnreachable),
		)
	}
	return rules
}

// lead takes the questions of a guest whose default route leaves by a NIC on another
// bridge to the endpoint, past that bridge. A guest that looks for the address on
// the NIC itself means its network's own.
func lead(port int) []rule {
	return []rule{
		to("remember that the guest looks for the address here", arpOperation(arpRequest), arpTarget(address), addTo(elsewhere, byName)),
		to("accept questions to the address on this network", ipTarget(address), isIn(elsewhere, byName), accept),
		to("drop fragments of questions", ipTarget(address), ipFragment, drop),
		to("drop questions with IPv4 options", ipTarget(address), ipOptions, drop),
		to("forget the sender at a new connection", ipTarget(address), tcpTo(guestPort), tcpOpens, forget(ledMACs, bySource, itsMAC), forget(ledNICs, bySource, itsNIC)),
		to("lead questions to the endpoint", ipTarget(address), tcpTo(guestPort),
			keep(ledMACs, bySource, itsMAC), keep(ledNICs, bySource, itsNIC), setEtherTarget(wiring.DeviceMAC), forward(uint32(port))),
	}
}
