package packet

import (
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// The kinds of NeighbourMessage.
const (
	Solicitation  = 135
	Advertisement = 136
)

// NeighbourMessage makes an IPv6 packet that holds a message of neighbour discovery
// (RFC 4861): a solicitation or an advertisement for target. Its option gives the
// link-layer address linked; nil: none.
func NeighbourMessage(kind byte, from, to net.HardwareAddr, source, destination, target netip.Addr, linked net.HardwareAddr) []byte {
	message := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	option := byte(1) // source link-layer address
	if kind == Advertisement {
		message[4] = 0x20 // override what is known
		option = 2        // target link-layer address
	}
	message = append(message, target.AsSlice()...)
	if linked != nil {
		message = append(append(message, option, 1), linked...)
	}
	return ICMPv6(from, to, source, destination, message)
}

// ICMPv6 makes an IPv6 packet that holds a message of ICMPv6 (RFC 4443), whose
// checksum it fills in.
func ICMPv6(from, to net.HardwareAddr, source, destination netip.Addr, message []byte) []byte {
	return ip(Party{from, source}, Party{to, destination}, unix.IPPROTO_ICMPV6, 2, slices.Clone(message))
}

// IPv6 makes an IPv6 packet. What follows the header begins with next.
func IPv6(from, to net.HardwareAddr, source, destination netip.Addr, next byte, payload []byte) []byte {
	return ipv6(Party{from, source}, Party{to, destination}, next, payload)
}
