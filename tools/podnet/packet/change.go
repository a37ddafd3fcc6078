package packet

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Lengths of headers in bytes.
const (
	ethernetHeader = 14
	macs           = 12 // of the Ethernet header: all but the EtherType
	ipv4Header     = 20
	tagLength      = 4
)

// Tag is a VLAN tag.
type Tag struct {
	// Kind is ETH_P_8021Q of a customer's tag, or ETH_P_8021AD of a provider's.
	Kind uint16
	// VLAN is the identifier. 0: the tag only gives a priority.
	VLAN uint16
}

// The tags of the tests.
var (
	CustomerTag = Tag{unix.ETH_P_8021Q, 7}
	ProviderTag = Tag{unix.ETH_P_8021AD, 8}
	PriorityTag = Tag{unix.ETH_P_8021Q, 0}
)

// Tagged puts VLAN tags into a frame, the outermost first.
func Tagged(frame []byte, tags ...Tag) []byte {
	tagged := slices.Clone(frame[:macs])
	for _, tag := range tags {
		tagged = binary.BigEndian.AppendUint16(tagged, tag.Kind)
		tagged = binary.BigEndian.AppendUint16(tagged, tag.VLAN)
	}
	return append(tagged, frame[macs:]...)
}

// Payload is what follows a frame's Ethernet header and its VLAN tags.
func Payload(frame []byte) []byte {
	rest := frame[macs:]
	for len(rest) > tagLength {
		if kind := binary.BigEndian.Uint16(rest); kind != unix.ETH_P_8021Q && kind != unix.ETH_P_8021AD {
			break
		}
		rest = rest[tagLength:]
	}
	return rest[2:]
}

// Fragments cuts an IPv4 frame of this package into fragments with at most size
// bytes of the packet's data each, a multiple of 8.
func Fragments(frame []byte, size int) [][]byte {
	const moreFragments = 0x2000
	headers, data := frame[:ethernetHeader+ipv4Header], frame[ethernetHeader+ipv4Header:]
	var fragments [][]byte
	for offset := 0; offset < len(data); offset += size {
		piece := data[offset:min(offset+size, len(data))]
		fragment := slices.Concat(headers, piece)
		header := fragment[ethernetHeader : ethernetHeader+ipv4Header]
		binary.BigEndian.PutUint16(header[2:], uint16(ipv4Header+len(piece)))
		place := uint16(offset / 8)
		if offset+len(piece) < len(data) {
			place |= moreFragments
		}
		binary.BigEndian.PutUint16(header[6:], place)
		binary.BigEndian.PutUint16(header[10:], 0)
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		fragments = append(fragments, fragment)
	}
	return fragments
}
