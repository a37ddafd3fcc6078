package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what the kernel can do for the rules, beyond what they cannot do without.
type Node struct {
	IPv6    bool // the rules of the ip6 family, without which the endpoint has no IPv6 address
	Refuses bool // refuse at once what is not ours to answer
	Leads   bool // lead questions to the endpoint that come by another NIC's tap
	Sockets bool // tell the server's socket from others of the pod

	Missing []error // what else the kernel lacks, each a MissingError
}

// MissingError tells what the kernel lacks without which the endpoint cannot be kept
// from strangers.
type MissingError struct {
	Piece Piece
	Err   error // of the kernel
}

func (e MissingError) Error() string {
	why := strings.TrimPrefix(e.Err.Error(), "nf_tables: ")
	lost := "without which others than the guest could reach the endpoint"
	if !e.Piece.Needed && !e.Piece.NeededForPasst {
		lost = "which is for " + e.Piece.For
	}
	if !lacks(e.Err) && !errors.Is(e.Err, fs.ErrPermission) {
		return fmt.Sprintf("%s cannot be used now: %s", e.Piece.Name, why)
	}
	if errors.Is(e.Err, fs.ErrPermission) {
		return fmt.Sprintf("%s: %s: imds-init lacks NET_ADMIN, or SELinux or another security module forbids it (container_t may not open a netfilter socket)", e.Piece.Name, why)
	}
	return fmt.Sprintf("the node's kernel lacks %s (%s), %s; on the node: %s", e.Piece.Name, why, lost, e.Piece.Remedy)
}

// lacks tells the kernel's ways of saying that it has no such family, hook or expression
// from other troubles.
func lacks(err error) bool {
	for _, missing := range []error{unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT, unix.EINVAL} {
		if errors.Is(err, missing) {
			return true
		}
	}
	return false
}

func (e MissingError) Unwrap() error { return e.Err }

// Piece is a part of the kernel that the rules use.
type Piece struct {
	Name   string
	For    string // what it is for
	Remedy string
	// Needed: without it nobody is served. NeededForPasst: no guest of passt.
	Needed, NeededForPasst bool

	add func(b *batch, name string) // to a transaction, under the name
	has func(*Node) *bool           // nil: not a thing to do without
}

// Pieces are the parts of the kernel in the order in which they are tried. Each is
// tried alone, in a transaction that is undone: it leaves nothing and causes no event,
// but loads the modules that it needs.
var Pieces = []Piece{
	{"nf_tables", "all rules", "modprobe nf_tables (CONFIG_NF_TABLES)", true, true, func(*batch, string) {}, nil},
	{"nf_tables of the ip family", "all rules", "enable CONFIG_NF_TABLES_IPV4", true, true, try(familyIPv4, unix.NF_INET_LOCAL_IN, accept), nil},
	{"nf_tables of the arp family", "all rules", "enable CONFIG_NF_TABLES_ARP", true, true, try(familyARP, arpInput, accept), nil},
	{"nf_tables of the bridge family", "guests on a bridge", "enable CONFIG_NF_TABLES_BRIDGE", true, false, try(familyBridge, bridgePrerouting, accept), nil},
	{"the expression notrack of nf_tables", "guests on a bridge", "modprobe nft_ct (CONFIG_NFT_CT)", true, false, try(familyIPv4, unix.NF_INET_PRE_ROUTING, notrack), nil},
	{"dynamic maps of nf_tables", "guests on a bridge", "a kernel of 5.7 or newer, with CONFIG_NF_TABLES", true, false, tryMap, nil},
	{"interface kinds in nf_tables", "all rules", "a kernel of 5.7 or newer", true, true, try(familyIPv4, unix.NF_INET_FORWARD, join(notOifKind("bridge"), accept)), nil},
	{"the NAT of nf_tables", "guests of passt", "modprobe nft_chain_nat nft_nat (CONFIG_NFT_NAT)", false, true, tryNAT, nil},
	{"refusals of nf_tables in the ip family", "guests of passt", "modprobe nft_reject_ipv4 (CONFIG_NFT_REJECT_IPV4)", false, true, try(familyIPv4, unix.NF_INET_LOCAL_OUT, refuseByReset), nil},
	{"nf_tables of the ip6 family", "IPv6", "enable CONFIG_NF_TABLES_IPV6", false, false, try(familyIPv6, unix.NF_INET_LOCAL_IN, accept), func(n *Node) *bool { return &n.IPv6 }},
	{"refusals of nf_tables in the netdev family", "telling a guest at once that a port is not served", "modprobe nft_reject_netdev (CONFIG_NFT_REJECT_NETDEV), a kernel of 5.11 or newer", false, false, tryDevice(refuseByReset), func(n *Node) *bool { return &n.Refuses }},
	{"sockets in nf_tables", "keeping questions from other listeners of the pod while imds-server starts", "modprobe nft_socket (CONFIG_NFT_SOCKET), a kernel of 5.14 or newer", false, false, try(familyIPv4, unix.NF_INET_LOCAL_IN, join(otherListener, accept)), func(n *Node) *bool { return &n.Sockets }},
	{"forwarding of nf_tables in the netdev family", "guests whose default route leaves by another NIC", "modprobe nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV)", false, false, tryDevice(forward(1)), func(n *Node) *bool { return &n.Leads }},
}

// Probe finds out what the kernel can do. The error is a MissingError where it lacks
// what a guest cannot be served without: on a bridge, or by passt. Where the kernel
// has all pieces it tells so at once.
func Probe(passt bool) (node Node, err error) {
	if trial(Pieces...) == nil {
		return Node{IPv6: true, Refuses: true, Leads: true, Sockets: true}, nil
	}
	for _, piece := range Pieces {
		needed := piece.Needed
		if passt {
			needed = piece.NeededForPasst
		}
		if !needed && piece.has == nil {
			continue
		}
		err := piece.Try()
		if needed && err != nil {
			return node, MissingError{piece, err}
		}
		if piece.has != nil {
			*piece.has(&node) = err == nil
		}
		if err != nil {
			node.Missing = append(node.Missing, MissingError{piece, err})
		}
	}
	return node, nil
}

// Try says why the kernel lacks the piece, or nil.
func (p Piece) Try() error { return trial(p) }

// trial tries pieces in one transaction.
func trial(pieces ...Piece) error {
	s := new(sockets)
	defer s.close()
	if _, err := s.generation(); err != nil {
		return err
	}
	// Ours may be there, and in a state in which the kernel takes no second change.
	b := &batch{table: tableName + "-trial"}
	for i, p := range pieces {
		p.add(b, fmt.Sprint("trial", i))
	}
	if len(b.messages) == 0 {
		return nil
	}
	return b.check(s)
}

// try makes a chain with one rule.
func try(family byte, hook uint32, p part) func(*batch, string) {
	return tryChain(chain{family: family, kind: "filter", hook: hook, rules: []rule{to("", p)}})
}

func tryChain(c chain) func(*batch, string) {
	return func(b *batch, name string) {
		c := c
		c.name = name
		b.addTable(c.family)
		b.addChain(c)
	}
}

func tryMap(b *batch, name string) {
	b.addTable(familyBridge)
	b.addMapping(mapping{familyBridge, name, etherAddr, ipv4Addr, 2, time.Second})
	b.addChain(chain{family: familyBridge, kind: "filter", name: name, hook: bridgePrerouting, rules: []rule{
		to("", keep(name, byARPMAC, itsAddress)), to("", forget(name, byARPMAC, itsAddress)), to("", arpTargetFrom(name, toARPMAC)),
	}})
}

var tryNAT = tryChain(chain{family: familyIPv4, kind: "nat", hook: unix.NF_INET_LOCAL_OUT, rules: []rule{to("", tcpTo(guestPort), toPort(guestPort))}})

// tryDevice tries a statement on lo, which every network namespace has.
func tryDevice(p part) func(*batch, string) {
	return tryChain(chain{family: familyNetdev, kind: "filter", hook: netdevIngress, device: "lo", rules: []rule{to("", p)}})
}
