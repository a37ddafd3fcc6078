package podnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// The project's own MACs: of the interface that carries 169.254.169.254, of the bridge
// port it is reached by, and the one that stands for all guests in the pod's routes.
var (
	EndpointMAC = net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe}
	PortMAC     = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xfe}
	GuestsMAC   = net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xff}
)

// Frame is an Ethernet frame as a capture has seen it.
type Frame struct {
	// Outgoing: it left by the interface; otherwise it came in.
	Outgoing bool
	// Data begins with the destination MAC and has no checksum at its end.
	Data []byte
	// At is when it was read, shortly after it had passed.
	At time.Time
}

// ConcernsMetadata says whether the frame is about the metadata service:
// 169.254.169.254 is in its ARP sender or target or is its IPv4 source or
// destination; fe80::a9fe:a9fe is its IPv6 source or destination or what a
// neighbour solicitation or advertisement is about; or one of the project's MACs
// is its source or destination. A frame of a VLAN is about another network, so
// that only the MACs count.
func (f Frame) ConcernsMetadata() bool {
	if len(f.Data) < 14 {
		return false
	}
	for _, mac := range []net.HardwareAddr{f.destination(), f.source()} {
		if bytes.Equal(mac, EndpointMAC) || bytes.Equal(mac, PortMAC) || bytes.Equal(mac, GuestsMAC) {
			return true
		}
	}
	if f.inVLAN() {
		return false
	}
	protocol, payload := f.payload()
	at := func(offset int, addr netip.Addr) bool {
		return len(payload) >= offset && bytes.HasPrefix(payload[offset:], addr.AsSlice())
	}
	switch protocol {
	case unix.ETH_P_ARP:
		return at(14, MetadataAddr) || at(24, MetadataAddr)
	case unix.ETH_P_IP:
		return at(12, MetadataAddr) || at(16, MetadataAddr)
	case unix.ETH_P_IPV6:
		return at(8, MetadataIPv6Addr) || at(24, MetadataIPv6Addr) || discoveryTarget(payload) == MetadataIPv6Addr
	}
	return false
}

func (f Frame) String() string {
	if len(f.Data) < 14 {
		return fmt.Sprintf("short frame %x", f.Data)
	}
	direction := map[bool]string{false: "in", true: "out"}[f.Outgoing]
	protocol, payload := f.payload()
	return fmt.Sprintf("%s %s > %s, ethertype %#04x: %x", direction,
		f.source(), f.destination(), protocol, payload[:min(len(payload), 40)])
}

func (f Frame) destination() net.HardwareAddr { return net.HardwareAddr(f.Data[0:6]) }
func (f Frame) source() net.HardwareAddr      { return net.HardwareAddr(f.Data[6:12]) }

// inVLAN says whether the frame has a VLAN tag that does not only give it a
// priority.
func (f Frame) inVLAN() bool {
	tag := binary.BigEndian.Uint16(f.Data[12:14])
	return (tag == unix.ETH_P_8021Q || tag == unix.ETH_P_8021AD) && len(f.Data) >= 16 && binary.BigEndian.Uint16(f.Data[14:16])&0x0fff != 0
}

// discoveryTarget returns what address an IPv6 packet solicits or advertises, if
// it does (RFC 4861). An extension header of eight bytes may be before the
// message.
func discoveryTarget(datagram []byte) (target netip.Addr) {
	const header, extension = 40, 8
	if len(datagram) < header {
		return target
	}
	next, message := datagram[6], datagram[header:]
	if next != unix.IPPROTO_ICMPV6 && len(message) >= extension {
		next, message = message[0], message[extension:]
	}
	if next != unix.IPPROTO_ICMPV6 || len(message) < 24 || message[0] != packet.Solicitation && message[0] != packet.Advertisement {
		return target
	}
	target, _ = netip.AddrFromSlice(message[8:24])
	return target
}

// payload returns the protocol (an ETH_P_* constant) and what follows it,
// behind at most one VLAN tag.
func (f Frame) payload() (uint16, []byte) {
	protocol, rest := binary.BigEndian.Uint16(f.Data[12:14]), f.Data[14:]
	if (protocol == unix.ETH_P_8021Q || protocol == unix.ETH_P_8021AD) && len(rest) >= 4 {
		protocol, rest = binary.BigEndian.Uint16(rest[2:4]), rest[4:]
	}
	return protocol, rest
}
