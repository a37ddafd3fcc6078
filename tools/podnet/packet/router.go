package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// allNodes is whom a router tells of itself (RFC 4291 section 2.7.1).
var allNodes = Party{net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1")}

// RouterAdvertisement makes the frame in which somebody says that it is
// everybody's router, and that everybody shall have an address with the prefix
// (RFC 4861 section 4.2).
func RouterAdvertisement(router Party, prefix netip.Prefix) []byte {
	const kind, hopLimit, lifetime = 134, 64, 1800 // seconds
	message := []byte{kind, 0, 0, 0, hopLimit, 0}
	message = binary.BigEndian.AppendUint16(message, lifetime)
	message = append(message, make([]byte, 8)...) // reachable time and retransmission as they are
	const prefixInformation, units, onLinkAndAutonomous = 3, 4, 0xc0
	message = append(message, prefixInformation, units, byte(prefix.Bits()), onLinkAndAutonomous)
	message = binary.BigEndian.AppendUint32(message, lifetime)
	message = binary.BigEndian.AppendUint32(message, lifetime)
	message = slices.Concat(message, make([]byte, 4), prefix.Addr().AsSlice())
	return ip(router, allNodes, unix.IPPROTO_ICMPV6, 2, message)
}
