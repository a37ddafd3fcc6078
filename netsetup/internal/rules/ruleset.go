package rules

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// tableName is the name of our table in each family.
const tableName = "imds"

// chain is a base chain and its rules in order.
type chain struct {
	family   nftables.TableFamily
	kind     nftables.ChainType
	name     string
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

// rule is one rule; its purpose is shown by `nft list ruleset` as a comment.
type rule struct {
	purpose string
	parts   []part
}

// expressions puts the counter before the last part, the verdict, so that it
// counts what matched.
func (r rule) expressions() []expr.Any {
	var all []expr.Any
	last := len(r.parts) - 1
	for _, p := range r.parts[:last] {
		all = append(all, p...)
	}
	all = append(all, counter()...)
	return append(all, r.parts[last]...)
}

// bridgeEarly runs before the destination NAT of the bridge family and before
// br_netfilter hands the frame to the IPv4 hooks (NF_BR_PRI_NAT_DST_BRIDGED in
// include/uapi/linux/netfilter_bridge.h).
const bridgeEarly nftables.ChainPriority = -300

// ruleset is every chain for a wiring. It stands from the first moment on:
// without a bridge there are no guests, and nobody reaches the address.
func ruleset(w wiring.Wiring) []chain {
	chains := []chain{
		{nftables.TableFamilyBridge, nftables.ChainTypeFilter, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRef(bridgeEarly), fromPorts(w)},
		{nftables.TableFamilyBridge, nftables.ChainTypeFilter, "input", nftables.ChainHookInput, nftables.ChainPriorityFilter, intoBridge()},
		{nftables.TableFamilyBridge, nftables.ChainTypeFilter, "postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityFilter, toPorts(w)},
		{nftables.TableFamilyIPv4, nftables.ChainTypeFilter, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, intoPod(w)},
		{nftables.TableFamilyIPv4, nftables.ChainTypeFilter, "input", nftables.ChainHookInput, nftables.ChainPriorityFilter, toListeners()},
		{nftables.TableFamilyIPv4, nftables.ChainTypeFilter, "forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, throughPod(w)},
		{nftables.TableFamilyIPv4, nftables.ChainTypeFilter, "output", nftables.ChainHookOutput, nftables.ChainPriorityRaw, outOfPod(w)},
		{nftables.TableFamilyARP, nftables.ChainTypeFilter, "input", arpInput, nftables.ChainPriorityFilter, arpIntoPod()},
		{nftables.TableFamilyARP, nftables.ChainTypeFilter, "output", arpOutput, nftables.ChainPriorityFilter, arpOutOfPod()},
	}
	if w.Redirected() {
		chains = append(chains, redirection(w.RedirectPort))
	}
	if w.IPv6 {
		chains = append(chains, chainsIPv6(w)...)
	}
	return chains
}

// Hooks of the ARP family (NF_ARP_IN and NF_ARP_OUT in
// include/uapi/linux/netfilter_arp.h).
var (
	arpInput  = nftables.ChainHookRef(0)
	arpOutput = nftables.ChainHookRef(1)
)

var address = wiring.Address.Addr()

// fromPorts judges the frames that enter the bridge. Only a guest may ask, and
// nobody but the endpoint may speak for it. Most of what is dropped here would
// also be dropped on its way out of the bridge or into the pod, or be kept off
// by the isolation of the ports: no single mistake opens the endpoint.
func fromPorts(w wiring.Wiring) []rule {
	rules := append(speaks(iifname(wiring.Port)),
		rule{"the endpoint speaks", []part{iifname(wiring.Port), accept()}},
		rule{"nobody else has its MAC", []part{etherSource(wiring.DeviceMAC), drop()}},
		rule{"nobody else has its port's MAC", []part{etherSource(wiring.PortMAC), drop()}},
	)
	rules = append(rules, vlansFromPorts()...)
	rules = append(rules,
		rule{"nobody else has its address", []part{ipSource(address), drop()}},
		rule{"nobody else answers for its address", []part{arpSender(address), drop()}},
		rule{"nobody else names its MAC", []part{arpSenderMAC(wiring.DeviceMAC), drop()}},
		rule{"nobody else names its port's MAC", []part{arpSenderMAC(wiring.PortMAC), drop()}},
		rule{"a question comes in one piece", []part{ipTarget(address), ipFragment(), drop()}},
		rule{"a question has no options", []part{ipTarget(address), ipOptions(), drop()}},
	)
	rules = append(rules, spoofed()...)
	for _, guest := range w.Guests {
		rules = append(rules,
			rule{"a guest that sends to its gateway is served", []part{iifname(guest), ipTarget(address), ipSenderKnown, setEtherTarget(wiring.DeviceMAC), accept()}},
			rule{"a guest looks for the endpoint", []part{iifname(guest), arpTarget(address), arpSenderKnown, accept()}},
		)
		rules = append(rules, guestAsks(guest)...)
	}
	rules = append(rules, unasked()...)
	return append(rules,
		rule{"nobody else asks", []part{ipTarget(address), drop()}},
		rule{"nobody else looks for the endpoint", []part{arpTarget(address), drop()}},
		rule{"the endpoint gets nothing else", []part{etherTarget(wiring.DeviceMAC), drop()}},
	)
}

// intoBridge judges the frames for the pod itself, by its own address on the
// bridge. The endpoint has nothing to say to it, and would otherwise find an
// address of the pod's there that a guest asks from.
func intoBridge() []rule {
	return []rule{
		{"the endpoint speaks to guests only", []part{iifname(wiring.Port), drop()}},
	}
}

// toPorts judges the frames that leave the bridge, its own and those it
// forwards: nothing of ours reaches an uplink, nothing foreign the endpoint.
func toPorts(w wiring.Wiring) []rule {
	rules := vlansToPorts()
	rules = append(rules, asks(oifname(wiring.Port))...)
	rules = append(rules, []rule{
		{"a question to the endpoint", []part{oifname(wiring.Port), ipTarget(address), accept()}},
		{"a look for the endpoint", []part{oifname(wiring.Port), arpTarget(address), accept()}},
		{"the endpoint gets nothing else", []part{oifname(wiring.Port), drop()}},
		{"questions go to the endpoint only", []part{ipTarget(address), drop()}},
		{"the endpoint is looked for on its port only", []part{arpTarget(address), drop()}},
	}...)
	rules = append(rules, unasked()...)
	for _, guest := range w.Guests {
		rules = append(rules, rule{"the endpoint answers a guest", []part{oifname(guest), etherSource(wiring.DeviceMAC), accept()}})
	}
	rules = append(rules,
		rule{"the endpoint answers nobody else", []part{etherSource(wiring.DeviceMAC), drop()}},
		rule{"nobody else has its address", []part{ipSource(address), drop()}},
		rule{"nobody else answers for its address", []part{arpSender(address), drop()}},
	)
	return append(rules, spoofed()...)
}

// intoPod keeps NAT and connection tracking away from the endpoint's packets.
// Where bridge-nf-call-iptables is 1 they pass here once more as frames on the
// bridge, and KubeVirt's masquerade would change their source. A redirection
// needs the tracking.
func intoPod(w wiring.Wiring) []rule {
	own := rule{"the endpoint is for its address only", []part{iifname(wiring.Device), notIPTarget(address), drop()}}
	if w.Redirected() {
		return []rule{own, onlyThePodAsks}
	}
	return append([]rule{own}, untracked...)
}

// toListeners keeps the pod's other interfaces away from the address, which
// the kernel would accept on any of them.
func toListeners() []rule {
	return []rule{
		{"only the endpoint and the pod itself ask", []part{notIif(wiring.Device), notIif("lo"), ipTarget(address), drop()}},
	}
}

// throughPod keeps the pod from forwarding a question that found no endpoint:
// beyond the pod the same address may be the metadata service of the node.
// Frames that pass here on their way across the bridge have the bridge as
// both interfaces.
func throughPod(w wiring.Wiring) []rule {
	question := rule{"questions stay in the pod", []part{ipTarget(address), drop()}}
	if w.Joined() {
		question.parts = []part{ipTarget(address), notOif(w.Bridge.Name), drop()}
	}
	return []rule{
		{"the endpoint is no router", []part{iifname(wiring.Device), drop()}},
		question,
	}
}

// outOfPod does for the pod's own packets what the others do for the guest's.
func outOfPod(w wiring.Wiring) []rule {
	kept := []rule{
		{"questions stay in the pod", []part{ipTarget(address), notOif("lo"), drop()}},
		{"answers leave by the endpoint", []part{ipSource(address), notOif(wiring.Device), notOif("lo"), drop()}},
	}
	if w.Redirected() {
		return kept // tracked: the redirection is by connection
	}
	return append(slices.Concat(untracked, kept), notToPod)
}

// notToPod: a guest may ask from an address that is the pod's too, as its own is
// in bridge binding. What no socket sends, such as a reset, has no device to
// leave by, and would be for the pod. The pod's own probes ask from the
// endpoint's address or from lo's, which are martians where a guest sends them.
var notToPod = rule{"the pod is answered on lo only where it asked there", []part{
	ipSource(address), notIPTarget(address), notIPTarget(loopback), oifname("lo"), drop(),
}}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// untracked are the rules for questions and answers that come by a bridge.
var untracked = []rule{
	{"questions bypass NAT", []part{ipTarget(address), notrack()}},
	{"answers bypass NAT", []part{ipSource(address), notrack()}},
}

func arpIntoPod() []rule {
	return []rule{
		{"only the endpoint answers for its address", []part{notIif(wiring.Device), arpTarget(address), drop()}},
	}
}

func arpOutOfPod() []rule {
	return []rule{
		{"only the endpoint speaks for its address", []part{notOif(wiring.Device), arpSender(address), drop()}},
	}
}
