package podnet

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// natFamily is what differs between the NAT of IPv4 and of IPv6.
type natFamily struct {
	table                    nftables.TableFamily
	protocol                 uint32 // NFPROTO_*
	guest, gateway, loopback netip.Addr
}

var (
	ipv4NAT = natFamily{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, MasqueradeGuestAddr, MasqueradeGateway, netip.MustParseAddr("127.0.0.1")}
	ipv6NAT = natFamily{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, MasqueradeGuestIPv6Addr, MasqueradeIPv6Gateway, netip.IPv6Loopback()}
)

// translateAddresses makes the table that KubeVirt makes for each family, here
// for IPv4,
// pkg/network/driver/nft: in a text that nft reads,
//
//	table ip nat {
//		chain prerouting  { type nat hook prerouting priority -100; iifname "eth0" counter jump KUBEVIRT_PREINBOUND; }
//		chain input       { type nat hook input priority 100; }
//		chain output      { type nat hook output priority -100; ip daddr 127.0.0.1 counter dnat to 10.0.2.2; }
//		chain postrouting { type nat hook postrouting priority 100; ip saddr 10.0.2.2 counter masquerade;
//		                    oifname "k6t-eth0" counter jump KUBEVIRT_POSTINBOUND; }
//		chain KUBEVIRT_PREINBOUND  { counter dnat to 10.0.2.2; }
//		chain KUBEVIRT_POSTINBOUND { ip saddr 127.0.0.1 counter snat to 10.0.2.1; }
//	}
//
// and where the VM lists ports, one rule for each in place of each dnat and
// snat, with "tcp dport".
func (p *Pod) translateAddresses(n *nic, f natFamily) error {
	conn, err := p.Pod.Nftables()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "nat", Family: f.table})
	base := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority,
		})
	}
	prerouting := base("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	base("input", nftables.ChainHookInput, nftables.ChainPriorityNATSource)
	output := base("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	preinbound := conn.AddChain(&nftables.Chain{Name: "KUBEVIRT_PREINBOUND", Table: table})
	postinbound := conn.AddChain(&nftables.Chain{Name: "KUBEVIRT_POSTINBOUND", Table: table})

	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	rule(postrouting, ipSource(f.guest), counted(&expr.Masq{}))
	rule(prerouting, interfaceName(expr.MetaKeyIIFNAME, n.iface), counted(jump(preinbound)))
	rule(postrouting, interfaceName(expr.MetaKeyOIFNAME, n.bridge), counted(jump(postinbound)))
	for _, port := range portMatches(p.options.Ports) {
		rule(preinbound, port, counted(f.translate(expr.NATTypeDestNAT, f.guest)...))
		rule(postinbound, port, ipSource(f.loopback), counted(f.translate(expr.NATTypeSourceNAT, f.gateway)...))
		rule(output, ipDestination(f.loopback), port, counted(f.translate(expr.NATTypeDestNAT, f.guest)...))
	}
	return conn.Flush()
}

// portMatches returns one match for each port, and a single empty one where
// none is listed.
func portMatches(ports []uint16) [][]expr.Any {
	if len(ports) == 0 {
		return [][]expr.Any{nil}
	}
	var matches [][]expr.Any
	for _, port := range ports {
		matches = append(matches, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		})
	}
	return matches
}

func ipSource(addr netip.Addr) []expr.Any {
	if addr.Is6() {
		return ipAddress(8, addr)
	}
	return ipAddress(12, addr)
}

func ipDestination(addr netip.Addr) []expr.Any {
	if addr.Is6() {
		return ipAddress(24, addr)
	}
	return ipAddress(16, addr)
}

// ipAddress matches an address at an offset of the IPv4 or IPv6 header, in
// bytes.
func ipAddress(offset uint32, addr netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(addr.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr.AsSlice()},
	}
}

func interfaceName(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

func counted(verdict ...expr.Any) []expr.Any {
	return append([]expr.Any{&expr.Counter{}}, verdict...)
}

func jump(to *nftables.Chain) expr.Any {
	return &expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}
}

func (f natFamily) translate(kind expr.NATType, to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: kind, Family: f.protocol, RegAddrMin: 1},
	}
}
