package podnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// The project's own MACs: of the interface that carries 169.254.169.254, and of
// the bridge port it is reached by.
var (
	EndpointMAC = net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe}
	PortMAC     = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xfe}
)

// Frame is an Ethernet frame as a capture has seen it.
type Frame struct {
	// Outgoing: it left by the interface; otherwise it came in.
	Outgoing bool
	// Data begins with the destination MAC and has no checksum at its end.
	Data []byte
}

// ConcernsMetadata says whether the frame is about the metadata service:
// 169.254.169.254 is in its ARP sender or target or is its IPv4 source or
// destination, also behind a VLAN tag, or one of the project's MACs is its
// source or destination.
func (f Frame) ConcernsMetadata() bool {
	if len(f.Data) < 14 {
		return false
	}
	for _, mac := range []net.HardwareAddr{f.destination(), f.source()} {
		if bytes.Equal(mac, EndpointMAC) || bytes.Equal(mac, PortMAC) {
			return true
		}
	}
	protocol, payload := f.payload()
	metadata := MetadataAddr.AsSlice()
	at := func(offset int) bool {
		return len(payload) >= offset+4 && bytes.Equal(payload[offset:offset+4], metadata)
	}
	switch protocol {
	case unix.ETH_P_ARP:
		return at(14) || at(24)
	case unix.ETH_P_IP:
		return at(12) || at(16)
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

// payload returns the protocol (an ETH_P_* constant) and what follows it,
// behind at most one VLAN tag.
func (f Frame) payload() (uint16, []byte) {
	protocol, rest := binary.BigEndian.Uint16(f.Data[12:14]), f.Data[14:]
	if (protocol == unix.ETH_P_8021Q || protocol == unix.ETH_P_8021AD) && len(rest) >= 4 {
		protocol, rest = binary.BigEndian.Uint16(rest[2:4]), rest[4:]
	}
	return protocol, rest
}
