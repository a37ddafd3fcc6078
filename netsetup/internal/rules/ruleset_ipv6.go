package rules

import (
	"slices"

	"github.com/google/nftables"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

var (
	addressIPv6 = wiring.AddressIPv6.Addr()

	solicitation  = discovery(neighbourSolicitation)
	advertisement = discovery(neighbourAdvertisement)
)

// chainsIPv6 is what the pod itself does with IPv6. The address is link-local,
// and the kernel delivers it on its own device only; so there is less to forbid
// than for IPv4, but far more that a device with IPv6 hears and says by itself.
func chainsIPv6(w wiring.Wiring) []chain {
	return []chain{
		{nftables.TableFamilyIPv6, nftables.ChainTypeFilter, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, intoPodIPv6(w)},
		{nftables.TableFamilyIPv6, nftables.ChainTypeFilter, "output", nftables.ChainHookOutput, nftables.ChainPriorityRaw, outOfPodIPv6()},
	}
}

// questions is the three kinds of packets that the endpoint hears, each with the
// match of who may make it hear them.
var questions = []struct {
	purpose     string
	match       part
	senderKnown part
}{
	{"a guest asks", slices.Concat(fromLinkLocal(), ip6Target(addressIPv6), tcp6()), ip6SenderKnown},
	{"a guest looks for the endpoint", slices.Concat(fromLinkLocal(), solicitation, discoveryTarget(addressIPv6)), ip6SenderKnown},
	{"a guest tells the endpoint where it is", slices.Concat(fromLinkLocal(), ip6Target(addressIPv6), advertisement), advertisedKnown},
}

// asks accepts the questions that another match finds too.
func asks(match part) (rules []rule) {
	for _, q := range questions {
		rules = append(rules, rule{q.purpose, []part{match, q.match, accept()}})
	}
	return rules
}

// guestAsks sends the questions of a guest to the endpoint.
func guestAsks(guest string) (rules []rule) {
	for _, q := range questions {
		rules = append(rules, rule{q.purpose, []part{iifname(guest), q.match, q.senderKnown, setEtherTarget(wiring.DeviceMAC), accept()}})
	}
	return rules
}

// speaks is the three kinds of IPv6 packets that the endpoint sends, and that
// everything else which a device with IPv6 says by itself, such as MLD reports
// and router solicitations, is not.
func speaks(match part) []rule {
	return []rule{
		{"the endpoint answers", []part{match, ip6Source(addressIPv6), tcp6(), accept()}},
		{"the endpoint looks for a guest", []part{match, ip6Source(addressIPv6), solicitation, accept()}},
		{"the endpoint tells where it is", []part{match, ip6Source(addressIPv6), advertisement, discoveryTarget(addressIPv6), accept()}},
		{"the endpoint says nothing else over IPv6", []part{match, ip6(), drop()}},
	}
}

// spoofed is what nobody but the endpoint may send, on either way through the
// bridge. That a neighbour's MAC is in the options of a message about another
// address does not matter: to whichever MAC a guest sends its question, it is
// rewritten.
func spoofed() []rule {
	return []rule{
		{"nobody else has its IPv6 address", []part{ip6Source(addressIPv6), drop()}},
		{"nobody else advertises its IPv6 address", []part{discoveryOf(neighbourAdvertisement, addressIPv6), drop()}},
	}
}

// unasked is what is left of the questions when those that may be asked have
// been accepted: those of strangers, in fragments, behind extension headers, by
// duplicate address detection, from more senders than are heard.
func unasked() []rule {
	return []rule{
		{"nobody else asks over IPv6", []part{ip6Target(addressIPv6), drop()}},
		{"nobody else solicits its IPv6 address", []part{discoveryOf(neighbourSolicitation, addressIPv6), drop()}},
	}
}

// intoPodIPv6 lets in by the endpoint what it has to hear, and no router
// advertisement, redirect or MLD query; and keeps the address from the pod's
// other interfaces, so that none of them looks for it on its own network. Where
// bridge-nf-call-ip6tables is 1 the frames on the bridge pass here too, as if
// they came in by the bridge.
func intoPodIPv6(w wiring.Wiring) []rule {
	rules := []rule{
		{"questions bypass NAT", []part{ip6Target(addressIPv6), notrack()}},
		{"answers bypass NAT", []part{ip6Source(addressIPv6), notrack()}},
	}
	rules = append(rules, asks(iifname(wiring.Device))...)
	stranger := []part{notIif(wiring.Device), notIif("lo"), ip6Target(addressIPv6), drop()}
	if w.Joined() {
		stranger = append([]part{notIif(w.Bridge.Name)}, stranger...)
	}
	return append(rules,
		rule{"the endpoint hears nothing else", []part{iifname(wiring.Device), drop()}},
		rule{"only the endpoint and the pod itself ask", stranger},
	)
}

// outOfPodIPv6 lets out by the endpoint what it has to say, and keeps the pod's
// own questions from its other interfaces.
func outOfPodIPv6() []rule {
	rules := []rule{
		{"questions bypass NAT", []part{ip6Target(addressIPv6), notrack()}},
		{"answers bypass NAT", []part{ip6Source(addressIPv6), notrack()}},
		{"questions stay in the pod", []part{ip6Target(addressIPv6), notOif("lo"), drop()}},
	}
	rules = append(rules, speaks(oifname(wiring.Device))...)
	return append(rules, rule{"answers leave by the endpoint", []part{ip6Source(addressIPv6), notOif("lo"), drop()}})
}
