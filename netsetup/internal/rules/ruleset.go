package rules

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// tableName is the name of our table in each family.
const tableName = "imds"

// The families of nf_tables that we use (include/uapi/linux/netfilter.h), by the
// names that nft(8) has for them.
const (
	familyBridge = unix.NFPROTO_BRIDGE
	familyIPv4   = unix.NFPROTO_IPV4
	familyIPv6   = unix.NFPROTO_IPV6
	familyARP    = unix.NFPROTO_ARP
	familyNetdev = unix.NFPROTO_NETDEV
)

// chain is a base chain and its rules, in the order in which the kernel runs them.
type chain struct {
	family   byte
	kind     string // filter or nat
	name     string
	hook     uint32
	priority int32
	device   string // in the netdev family: whose packets it sees
	rules    []rule
}

// rule is one rule; its purpose is shown by `nft list ruleset` as a comment.
type rule struct {
	purpose string
	parts   []part
}

// to makes a rule. A counter comes before its last part, the verdict, so that it
// counts what matched.
func to(purpose string, parts ...part) rule { return rule{purpose, parts} }

// mapping is a map that is filled by the packets of a guest and read by the answers to it.
type mapping struct {
	family    byte
	name      string
	key, data setType
	size      uint32
	timeout   time.Duration // 0: what is there stays
}

// The hooks that have chains of ours, and when they run among those of others.
const (
	bridgePrerouting  = 0 // NF_BR_PRE_ROUTING of include/uapi/linux/netfilter_bridge.h
	bridgeInput       = 1 // NF_BR_LOCAL_IN
	bridgePostrouting = 4 // NF_BR_POST_ROUTING

	arpInput  = 0 // NF_ARP_IN of include/uapi/linux/netfilter_arp.h
	arpOutput = 1 // NF_ARP_OUT

	// bridgeEarly runs before the destination NAT of the bridge family and before
	// br_netfilter hands the frame to the IPv4 hooks (NF_BR_PRI_NAT_DST_BRIDGED in
	// include/uapi/linux/netfilter_bridge.h).
	bridgeEarly = -300
	// beforeTracking runs before connection tracking (NF_IP_PRI_RAW in
	// include/uapi/linux/netfilter_ipv4.h).
	beforeTracking = -300
	filter         = 0
)

var (
	address     = wiring.Address.Addr()
	addressIPv6 = wiring.AddressIPv6.Addr()
	unspecified = netip.IPv6Unspecified()
	loopback    = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	// ours are the MACs that nobody else may have.
	ours = []net.HardwareAddr{wiring.DeviceMAC, wiring.PortMAC, wiring.GuestsMAC}
	// solicitedNode is the group in which the endpoint hears who looks for its IPv6
	// address (RFC 4291 section 2.7.1).
	solicitedNode = netip.MustParseAddr("ff02::1:fffe:a9fe")
)

// guestPort is the port that every guest asks at. Nothing else of our addresses is
// ours to answer.
const guestPort = 80

// ruleset is every chain of a wiring but those of the endpoint's own devices. It
// stands before the endpoint does.
func ruleset(w wiring.Wiring, node Node) []chain {
	if w.Redirected() {
		return passt(w)
	}
	return bridged(w, node)
}

// families are those that a wiring has rules in before the endpoint is there.
func families(w wiring.Wiring, node Node) []byte {
	switch {
	case w.Redirected():
		return []byte{familyIPv4, familyARP}
	case node.IPv6:
		return []byte{familyBridge, familyIPv4, familyARP, familyIPv6}
	}
	return []byte{familyBridge, familyIPv4, familyARP}
}
