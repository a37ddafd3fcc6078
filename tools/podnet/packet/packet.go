// Package packet builds Ethernet frames byte by byte, those that no honest
// kernel sends among them. A frame has its header, and no checksum at its end.
package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Broadcast is everybody's MAC.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Party is one of the two between whom a frame goes, as the frame has it.
type Party struct {
	MAC  net.HardwareAddr
	Addr netip.Addr
}

// The operations of ARP (RFC 826).
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP makes an ARP frame. The Ethernet header has the MACs from and to; what
// the packet says of sender and target may be something else. A target without
// a MAC is asked for.
func ARP(operation uint16, from, to net.HardwareAddr, sender, target Party) []byte {
	frame := ethernet(from, to, unix.ETH_P_ARP)
	frame = binary.BigEndian.AppendUint16(frame, 1) // Ethernet
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, 6, 4) // lengths of the two kinds of address
	frame = binary.BigEndian.AppendUint16(frame, operation)
	for _, party := range []Party{sender, target} {
		mac := party.MAC
		if mac == nil {
			mac = make(net.HardwareAddr, 6)
		}
		frame = append(frame, mac...)
		frame = append(frame, party.Addr.AsSlice()...)
	}
	return frame
}

// Gratuitous makes an ARP frame in which somebody tells everybody, or the one
// that it is sent to, of its own address.
func Gratuitous(operation uint16, who Party, to net.HardwareAddr) []byte {
	return ARP(operation, who.MAC, to, who, Party{to, who.Addr})
}

// UDP makes a UDP datagram over IPv4, or over IPv6 where both parties have such
// addresses.
func UDP(from, to Party, fromPort, toPort uint16, data []byte) []byte {
	datagram := binary.BigEndian.AppendUint16(nil, fromPort)
	datagram = binary.BigEndian.AppendUint16(datagram, toPort)
	datagram = binary.BigEndian.AppendUint16(datagram, uint16(8+len(data)))
	datagram = append(datagram, 0, 0)
	datagram = append(datagram, data...)
	return ip(from, to, unix.IPPROTO_UDP, 6, datagram)
}

// SYN makes the first segment of a TCP connection.
func SYN(from, to Party, fromPort, toPort uint16) []byte {
	segment := binary.BigEndian.AppendUint16(nil, fromPort)
	segment = binary.BigEndian.AppendUint16(segment, toPort)
	segment = append(segment, 0, 0, 0, 1, 0, 0, 0, 0) // sequence number, nothing acknowledged
	const words, syn, window = 5, 0x02, 64240
	segment = append(segment, words<<4, syn)
	segment = binary.BigEndian.AppendUint16(segment, window)
	segment = append(segment, 0, 0, 0, 0) // checksum, nothing urgent
	return ip(from, to, unix.IPPROTO_TCP, 16, segment)
}

// ip puts a transport packet, whose checksum belongs at the offset, behind
// headers.
func ip(from, to Party, protocol uint8, checksumAt int, packet []byte) []byte {
	pseudo := slices.Concat(from.Addr.AsSlice(), to.Addr.AsSlice(), []byte{0, protocol, byte(len(packet) >> 8), byte(len(packet))})
	binary.BigEndian.PutUint16(packet[checksumAt:], checksum(pseudo, packet))
	if from.Addr.Is6() {
		return ipv6(from, to, protocol, packet)
	}
	return ipv4(from, to, protocol, packet)
}

// ipv4 writes the header of RFC 791. Its identification is the packet's
// checksum of a kind, so that few packets have the same.
func ipv4(from, to Party, protocol uint8, packet []byte) []byte {
	header := []byte{0x45, 0}
	header = binary.BigEndian.AppendUint16(header, uint16(ipv4Header+len(packet)))
	header = binary.BigEndian.AppendUint16(header, checksum(packet, from.Addr.AsSlice()))
	header = append(header, 0, 0, 64, protocol, 0, 0)
	header = slices.Concat(header, from.Addr.AsSlice(), to.Addr.AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return slices.Concat(ethernet(from.MAC, to.MAC, unix.ETH_P_IP), header, packet)
}

// ipv6 writes the header of RFC 8200. Its hop limit is the one without which
// neighbour discovery is not believed.
func ipv6(from, to Party, protocol uint8, packet []byte) []byte {
	header := []byte{0x60, 0, 0, 0}
	header = binary.BigEndian.AppendUint16(header, uint16(len(packet)))
	header = append(header, protocol, 255)
	return slices.Concat(ethernet(from.MAC, to.MAC, unix.ETH_P_IPV6), header, from.Addr.AsSlice(), to.Addr.AsSlice(), packet)
}

func ethernet(from, to net.HardwareAddr, etherType uint16) []byte {
	return binary.BigEndian.AppendUint16(slices.Concat(to, from), etherType)
}

// checksum is the one's complement sum of RFC 1071 over the parts as if they
// were one. All but the last have an even number of bytes.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
