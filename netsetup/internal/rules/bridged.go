package rules

import (
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// The maps of the bridge family. An answer leaves the pod's own stack for
// [wiring.GuestsMAC] whoever asked, so that the kernel keeps no neighbour for a
// sender: it has one table for all pods of the node. On its way out of the bridge
// the frame gets the MAC that the connection came from, or, where no room was left to
// remember it, the MAC of the guest's NIC: that is the first that spoke on the tap.
// So whatever else is on the guest's side, the guest itself always has its place.
const (
	nics       = "nics"
	askersIPv4 = "askers-ipv4"
	askersIPv6 = "askers-ipv6"
	// Who looks for the endpoint by ARP, and from which address: the kernel gets the
	// request as a probe, which has none, and the reply is for that address again.
	lookers = "lookers"
	// Connections of those whose default route leaves by a NIC on another bridge.
	ledMACs = "led-macs"
	ledNICs = "led-nics"
)

// A place of a connection is free again a while after its last packet. The limit bounds
// what a hostile guest can have the kernel remember.
const (
	askersLimit  = 4096
	askersMemory = 30 * time.Second
)

func mappings(w wiring.Wiring) []mapping {
	if w.Redirected() {
		return nil
	}
	return []mapping{
		{familyBridge, nics, ifaceIndex, etherAddr, 64, 0},
		{familyBridge, askersIPv4, ipv4Sender, etherAddr, askersLimit, askersMemory},
		{familyBridge, askersIPv6, ipv6Sender, etherAddr, askersLimit, askersMemory},
		{familyBridge, lookers, etherAddr, ipv4Addr, askersLimit, 10 * time.Second},
	}
}

// bridged is the rules for guests on a bridge. Without a bridge that is joined, all are
// closed to our addresses.
func bridged(w wiring.Wiring, node Node) []chain {
	chains := []chain{
		{familyBridge, "filter", "prerouting", bridgePrerouting, bridgeEarly, "", fromPorts(w, node)},
		{familyBridge, "filter", "input", bridgeInput, filter, "", intoBridge},
		{familyBridge, "filter", "postrouting", bridgePostrouting, filter, "", toPorts(w)},
		{familyIPv4, "filter", "prerouting", unix.NF_INET_PRE_ROUTING, beforeTracking, "", slices.Concat(onlyTheService, untracked)},
		{familyIPv4, "filter", "input", unix.NF_INET_LOCAL_IN, filter, "", slices.Concat(toListeners, onlyTheServer(node))},
		{familyIPv4, "filter", "forward", unix.NF_INET_FORWARD, filter, "", throughPod},
		{familyIPv4, "filter", "output", unix.NF_INET_LOCAL_OUT, beforeTracking, "", slices.Concat(untracked, outOfPod, notToPod)},
		{familyIPv6, "filter", "prerouting", unix.NF_INET_PRE_ROUTING, beforeTracking, "", intoPodIPv6},
		{familyIPv6, "filter", "input", unix.NF_INET_LOCAL_IN, filter, "", onlyTheServer(node)},
		{familyIPv6, "filter", "output", unix.NF_INET_LOCAL_OUT, beforeTracking, "", outOfPodIPv6},
		{familyARP, "filter", "input", arpInput, filter, "", arpIntoPod},
		{familyARP, "filter", "output", arpOutput, filter, "", arpOutOfPod},
	}
	return slices.DeleteFunc(chains, func(c chain) bool { return c.family == familyIPv6 && !node.IPv6 })
}

// fromPorts judges the frames that enter the bridge. Only a guest may ask, and
// nobody but the endpoint may speak for it. Most of what is dropped here would also
// be dropped on its way out of the bridge or into the pod, or be kept off by the
// isolation of the ports: no single mistake opens the endpoint.
func fromPorts(w wiring.Wiring, node Node) []rule {
	if !w.Joined() {
		// Until one is, no guest's question leaves by any, and nobody answers it: the
		// bridge may come before its event does.
		return slices.Concat([]rule{to("drop all from the endpoint: no bridge is joined", iif(wiring.Port), drop)}, fromNobody, toNobody)
	}
	guest := iif(wiring.Names(w.Guests)...)
	var rules []rule
	if len(w.OtherGuests) > 0 {
		others := iif(wiring.Names(w.OtherGuests)...)
		rules = append(rules, to("drop answers that a guest routes to another network", others, ipSource(address), tcpFrom(guestPort), notUsualTTL, drop))
		if !w.Exclusive && !node.Leads {
			rules = append(rules, to("drop questions that cannot be led to the endpoint", others, ipTarget(address), tcpTo(guestPort), drop))
		}
	}
	rules = append(rules, otherBridges(iif, w.OtherPorts)...)
	rules = append(rules,
		to("accept the endpoint's IPv4 answers", iif(wiring.Port), ipSource(address), accept),
		to("accept the endpoint's ARP replies", iif(wiring.Port), arpOperation(arpReply), arpSender(address), accept),
		to("accept the endpoint's TCP over IPv6", iif(wiring.Port), ip6Source(addressIPv6), ip6Next(unix.IPPROTO_TCP), accept),
		to("accept the endpoint's IPv6 refusals", iif(wiring.Port), ip6Source(addressIPv6), icmp6(unreachable), accept),
		to("accept the endpoint's neighbour advertisements", iif(wiring.Port), ip6Source(addressIPv6), discovery(neighbourAdvertisement, addressIPv6), accept),
		to("drop all else from the endpoint", iif(wiring.Port), drop),

		to("drop frames with one of our MACs as source", etherSource(ours...), drop),
		to("drop a VLAN tag behind a priority tag", tagBehindPriorityTag, drop),
		to("drop VLAN frames to our MACs", inVLAN, etherTarget(ours...), drop),
		to("drop answers that a guest routes to a VLAN", guest, inVLAN, ipSource(address), tcpFrom(guestPort), notUsualTTL, drop),
		to("accept VLAN frames: other networks", inVLAN, accept),
		to("remember the MAC of the guest's NIC", guest, remember(nics, byNIC, itsMAC)),

		to("drop ARP that tells one of our MACs", arpSenderMAC(ours...), drop),
	)
	rules = append(rules, fromNobody...)
	rules = append(rules,
		to("drop fragments to our IPv4 address", ipTarget(address), ipFragment, drop),
		to("drop IPv4 options to our IPv4 address", ipTarget(address), ipOptions, drop),
	)
	what := ipTarget(address)
	whatIPv6 := join(fromLinkLocal, ip6Target(addressIPv6))
	if !node.Refuses {
		what, whatIPv6 = join(what, tcpTo(guestPort)), join(whatIPv6, ip6Next(unix.IPPROTO_TCP), tcpTo(guestPort))
	}
	rules = append(rules,
		to("remember the MAC of the connection", guest, ipTarget(address), tcpTo(guestPort), keepSender(askersIPv4, sender, sendersMAC)),
		to("lead the guest's IPv4 packets to the endpoint", guest, what, setEtherTarget(wiring.DeviceMAC), accept),
		to("forget the address of who looks for the endpoint", guest, arpOperation(arpRequest), arpTarget(address), forget(lookers, byARPMAC, itsAddress)),
		to("remember the address of who looks for the endpoint", guest, arpOperation(arpRequest), arpTarget(address), keep(lookers, byARPMAC, itsAddress)),
		to("lead the guest's ARP requests to the endpoint, as probes", guest, arpOperation(arpRequest), arpTarget(address),
			set(network, arpSenderAt, []byte{0, 0, 0, 0}), setEtherTarget(wiring.DeviceMAC), accept),
		to("hide the sender's MAC in a solicitation", guest, fromLinkLocal, discovery(neighbourSolicitation, addressIPv6), sourceOption(discoveryOptionAt), hideSourceOption(discoveryOptionAt)),
		to("hide it behind another option", guest, fromLinkLocal, discovery(neighbourSolicitation, addressIPv6), sourceOption(discoveryOptionAt+8), hideSourceOption(discoveryOptionAt+8)),
		to("lead the guest's solicitations to the endpoint, as probes", guest, fromLinkLocal, discovery(neighbourSolicitation, addressIPv6),
			setIP6(ip6SourceAt, unspecified), setIP6(ip6TargetAt, solicitedNode), setEtherTarget(wiring.DeviceMAC), accept),
		to("drop advertisements and other ICMPv6 to the endpoint", ip6Target(addressIPv6), ip6Next(unix.IPPROTO_ICMPV6), compare(expr.CmpOpNeq, network, ip6Length, []byte{echoRequest}), drop),
		to("remember the MAC of the connection over IPv6", guest, fromLinkLocal, ip6Target(addressIPv6), ip6Next(unix.IPPROTO_TCP), tcpTo(guestPort), keepSender(askersIPv6, senderIPv6, sendersMAC)),
		to("lead the guest's IPv6 packets to the endpoint", guest, whatIPv6, setEtherTarget(wiring.DeviceMAC), accept),
	)
	return append(rules, toNobody...)
}

// otherBridges leaves alone what passes the pod's other bridges: they may have the
// same address.
func otherBridges(by func(...string) part, ports []string) []rule {
	if len(ports) == 0 {
		return nil
	}
	return []rule{to("accept all on other bridges", by(ports...), accept)}
}

// fromNobody drops what is from our addresses, where what the endpoint says has been
// accepted.
var fromNobody = []rule{
	to("drop packets from our IPv4 address", ipSource(address), drop),
	to("drop ARP from our IPv4 address", arpSender(address), drop),
	to("drop packets from our IPv6 address", ip6Source(addressIPv6), drop),
	to("drop advertisements of our IPv6 address", discoveryAnywhere(neighbourAdvertisement, addressIPv6), drop),
}

// toNobody drops what is for our addresses and MACs, where what may pass has been
// accepted.
var toNobody = []rule{
	to("drop all else to our IPv4 address", ipTarget(address), drop),
	to("drop ARP for our IPv4 address", arpTarget(address), drop),
	to("drop all else to our IPv6 address", ip6Target(addressIPv6), drop),
	to("drop solicitations of our IPv6 address", discoveryAnywhere(neighbourSolicitation, addressIPv6), drop),
	to("drop all else to our MACs", etherTarget(ours...), drop),
}

// intoBridge judges the frames for the pod itself, by its own address on the
// bridge. The endpoint has nothing to say to it, and would otherwise find an
// address of the pod's there that a guest asks from.
var intoBridge = []rule{
	to("drop the endpoint's frames to the pod itself", iif(wiring.Port), drop),
}

// toPorts judges the frames that leave the bridge, its own and those it forwards:
// nothing of ours reaches an uplink, nothing foreign the endpoint.
func toPorts(w wiring.Wiring) []rule {
	if !w.Joined() {
		return nil
	}
	guest := oif(wiring.Names(w.Guests)...)
	rules := otherBridges(oif, w.OtherPorts)
	rules = append(rules,
		to("drop VLAN frames to the endpoint", inVLAN, oif(wiring.Port), drop),
		to("accept VLAN frames: other networks", inVLAN, accept),
		to("accept IPv4 packets to the endpoint", oif(wiring.Port), ipTarget(address), accept),
		to("accept ARP for the endpoint", oif(wiring.Port), arpTarget(address), accept),
		to("accept IPv6 packets to the endpoint", oif(wiring.Port), ip6Target(addressIPv6), accept),
		to("accept solicitations of the endpoint", oif(wiring.Port), ip6Source(unspecified), discovery(neighbourSolicitation, addressIPv6), accept),
		to("drop all else to the endpoint", oif(wiring.Port), drop),

		to("answer the MAC that asked", guest, etherTarget(wiring.GuestsMAC), ipSource(address), tcpFrom(guestPort), etherTargetFrom(askersIPv4, asker...)),
		to("answer the MAC that asked over IPv6", guest, etherTarget(wiring.GuestsMAC), ip6Source(addressIPv6), ip6Next(unix.IPPROTO_TCP), tcpFrom(guestPort), etherTargetFrom(askersIPv6, askerIPv6...)),
		to("answer the guest's NIC where the MAC is not known", guest, etherTarget(wiring.GuestsMAC), etherTargetFrom(nics, toNIC)),
		to("answer the address that looked for the endpoint", guest, etherSource(wiring.DeviceMAC), arpOperation(arpReply), arpTargetFrom(lookers, toARPMAC)),
		to("accept the endpoint's frames to a guest", guest, etherSource(wiring.DeviceMAC), accept),
		to("drop the endpoint's frames to others", etherSource(wiring.DeviceMAC), drop),
	)
	return slices.Concat(rules, fromNobody, toNobody)
}

// onlyTheService keeps the endpoint's device for its address and its port, whatever
// listens in the pod.
var onlyTheService = []rule{
	to("drop what the endpoint gets for other addresses", iif(wiring.Device), notIPTarget(address), drop),
	to("accept ICMP errors about answers", iif(wiring.Device), icmpUnreachable, accept),
	to("drop what the endpoint gets for other ports", iif(wiring.Device), tcpNotTo(guestPort), drop),
	to("drop what the endpoint gets besides TCP", iif(wiring.Device), layer4(expr.CmpOpNeq, unix.IPPROTO_TCP), drop),
}

// untracked keeps NAT and connection tracking away from the endpoint's packets.
// Where bridge-nf-call-iptables is 1 they pass the pod's stack once more as frames
// on the bridge, and KubeVirt's masquerade would change their source.
var untracked = []rule{
	to("keep questions from NAT", ipTarget(address), notrack),
	to("keep answers from NAT", ipSource(address), notrack),
}

// toListeners keeps the pod's other interfaces away from the address, which the
// kernel would accept on any of them.
var toListeners = []rule{
	to("drop questions by other interfaces", notIif(wiring.Device), notIif("lo"), ipTarget(address), drop),
}

// onlyTheServer keeps questions from a listener on every address, which would get them
// while imds-server does not listen.
func onlyTheServer(node Node) []rule {
	if !node.Sockets {
		return nil
	}
	return []rule{to("drop what another listener of the pod would get", iif(wiring.Device), tcpTo(guestPort), otherListener, drop)}
}

// throughPod keeps the pod from forwarding a question that found no endpoint:
// beyond the pod the same address may be the metadata service of the node. Frames
// that pass here on their way across a bridge have the bridge as both interfaces.
var throughPod = []rule{
	to("drop what the endpoint would forward", iif(wiring.Device), drop),
	to("drop questions that leave the pod", ipTarget(address), notOifKind("bridge"), drop),
}

// outOfPod does for the pod's own packets what the others do for the guest's.
var outOfPod = []rule{
	to("drop the pod's questions that leave it", ipTarget(address), notOif("lo"), drop),
	to("drop answers by other interfaces", ipSource(address), notOif(wiring.Device), notOif("lo"), drop),
}

// notToPod: a guest may ask from an address that is the pod's too, as its own is in
// bridge binding. What no socket sends, such as a reset, has no device to leave by,
// and would be for the pod. The pod's own probes ask from the endpoint's address or
// from lo's, which are martians where a guest sends them.
var notToPod = []rule{
	to("drop replies on lo except to the pod's own probes", ipSource(address), notIPTarget(address), notIPTarget(loopback), oif("lo"), drop),
}

// intoPodIPv6 lets in by the endpoint what it has to hear, and no router
// advertisement, redirect or MLD query; and keeps the address from the pod's other
// interfaces, so that none of them looks for it on its own network. Where
// bridge-nf-call-ip6tables is 1 the frames on a bridge pass here too, as if they
// came in by the bridge. The address is link-local, and the kernel delivers it on
// its own device only.
var intoPodIPv6 = []rule{
	to("keep questions from NAT", ip6Target(addressIPv6), notrack),
	to("keep answers from NAT", ip6Source(addressIPv6), notrack),
	to("accept the guest's questions", iif(wiring.Device), fromLinkLocal, ip6Target(addressIPv6), ip6Next(unix.IPPROTO_TCP), tcpTo(guestPort), accept),
	to("accept the guest's solicitations", iif(wiring.Device), ip6Source(unspecified), discovery(neighbourSolicitation, addressIPv6), accept),
	to("drop all else that the endpoint gets", iif(wiring.Device), drop),
	to("drop questions by other interfaces", notIifKind("bridge"), notIif("lo"), ip6Target(addressIPv6), drop),
}

// outOfPodIPv6 lets out by the endpoint what it has to say, and nothing that a
// device with IPv6 says by itself; and keeps the pod's own questions from its other
// interfaces.
var outOfPodIPv6 = []rule{
	to("keep questions from NAT", ip6Target(addressIPv6), notrack),
	to("keep answers from NAT", ip6Source(addressIPv6), notrack),
	to("drop the pod's questions that leave it", ip6Target(addressIPv6), notOif("lo"), drop),
	to("accept the endpoint's TCP", oif(wiring.Device), ip6Source(addressIPv6), ip6Next(unix.IPPROTO_TCP), accept),
	to("accept the endpoint's advertisements", oif(wiring.Device), ip6Source(addressIPv6), discovery(neighbourAdvertisement, addressIPv6), accept),
	to("drop all else from the endpoint", oif(wiring.Device), ip6, drop),
	to("drop answers by other interfaces", ip6Source(addressIPv6), notOif("lo"), drop),
}

var arpIntoPod = []rule{
	to("drop ARP for our address by other interfaces", notIif(wiring.Device), arpTarget(address), drop),
}

var arpOutOfPod = []rule{
	to("drop ARP from our address by other interfaces", notOif(wiring.Device), arpSender(address), drop),
}
