package rules

import (
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
	if leads(w, node) {
		at(wiring.Port, []rule{
			to("answer by the NIC that asked", ipSource(address), tcpFrom(guestPort), etherTargetFrom(ledMACs, asker...), forwardBy(ledNICs, asker...)),
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
	if !leads(w, node) {
		return nil
	}
	return []mapping{
		{familyNetdev, ledMACs, ipv4Sender, etherAddr, askersLimit, askersMemory},
		{familyNetdev, ledNICs, ipv4Sender, ifaceIndex, askersLimit, askersMemory},
	}
}

// leads says whether questions that come by other taps are led to the endpoint: not
// where the user has named the network that is served.
func leads(w wiring.Wiring, node Node) bool {
	return w.Joined() && node.Leads && !w.Exclusive && len(w.OtherGuests) > 0
}

// refuse tells a guest at once that what it asks for is not here. The reply goes to
// the MAC that the packet came from. Behind the interface there are guests only.
func refuse(node Node) []rule {
	rules := []rule{
		to("refuse connections to other ports", ipTarget(address), tcpNotTo(guestPort), refuseByReset),
		to("accept ICMP errors about answers", ipTarget(address), icmpUnreachable, accept),
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
// bridge to the endpoint, past that bridge. There is no other answer for what finds no
// room than none: on that network anybody could give one.
func lead(port int) []rule {
	question := join(ipTarget(address), tcpTo(guestPort))
	return []rule{
		to("accept VLAN frames: other networks", inVLAN, accept),
		to("drop questions in fragments", ipTarget(address), ipFragment, drop),
		to("drop questions with IPv4 options", question, ipOptions, drop),
		to("drop questions from our IPv4 address", question, ipSource(address), drop),
		to("lead questions to the endpoint", question,
			keepSender(ledMACs, sender, sendersMAC), keepSender(ledNICs, sender, sendersNIC), setEtherTarget(wiring.DeviceMAC), forward(uint32(port))),
		to("drop questions for which there is no room", question, drop),
	}
}
