package rules

import (
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Message types of neighbour discovery (RFC 4861).
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

// The IPv6 header (RFC 8200): the offsets of its fields and its length, in bytes.
const (
	ip6NextHeader = 6
	ip6SourceAt   = 8
	ip6TargetAt   = 24
	ip6Length     = 40
)

// discoveryTargetAt is the offset of the target address in a message of neighbour
// discovery directly behind the IPv6 header.
const discoveryTargetAt = ip6Length + 8

func ip6() part                   { return protocol(unix.ETH_P_IPV6) }
func ip6Source(a netip.Addr) part { return slices.Concat(ip6(), inNetwork(ip6SourceAt, a.AsSlice())) }
func ip6Target(a netip.Addr) part { return slices.Concat(ip6(), inNetwork(ip6TargetAt, a.AsSlice())) }

// fromLinkLocal matches a source in fe80::/64. Whoever speaks with a link-local
// address has one (RFC 4862), and no other is behind the endpoint's device.
func fromLinkLocal() part {
	return slices.Concat(ip6(), inNetwork(ip6SourceAt, []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0}))
}

// tcp6 matches TCP directly behind the IPv6 header: no extension header, no
// fragment.
func tcp6() part { return slices.Concat(ip6(), inNetwork(ip6NextHeader, []byte{unix.IPPROTO_TCP})) }

// discovery matches a message of neighbour discovery directly behind the IPv6
// header.
func discovery(message byte) part {
	return slices.Concat(ip6(), inNetwork(ip6NextHeader, []byte{unix.IPPROTO_ICMPV6}), inNetwork(ip6Length, []byte{message}))
}

// discoveryTarget matches the target address of a message that discovery has
// matched.
func discoveryTarget(a netip.Addr) part { return inNetwork(discoveryTargetAt, a.AsSlice()) }

// discoveryOf matches a message of neighbour discovery about an address, also
// behind extension headers.
func discoveryOf(message byte, target netip.Addr) part {
	return slices.Concat(ip6(),
		part{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_ICMPV6}},
		},
		payload(expr.PayloadBaseTransportHeader, 0, []byte{message}),
		payload(expr.PayloadBaseTransportHeader, 8, target.AsSlice()))
}

func inNetwork(offset uint32, data []byte) part {
	return payload(expr.PayloadBaseNetworkHeader, offset, data)
}
