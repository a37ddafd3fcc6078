package rules

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// part is a piece of a rule: one match or one statement, as the kernel's
// nf_tables expressions. They all work on register 1.
type part []expr.Any

const register = 1

// Offsets in the IPv4 header (RFC 791) and in an ARP packet for IPv4 over Ethernet
// (RFC 826), in bytes.
const (
	ipSourceAt  = 12
	ipTargetAt  = 16
	arpSenderAt = 14
	arpTargetAt = 24
)

func iifname(name string) part   { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notIif(name string) part    { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func oifname(name string) part   { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notOif(name string) part    { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }
func accept() part               { return part{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() part                 { return part{&expr.Verdict{Kind: expr.VerdictDrop}} }
func notrack() part              { return part{&expr.Notrack{}} }
func counter() part              { return part{&expr.Counter{}} }
func ipSource(a netip.Addr) part { return ipv4(ipSourceAt, a) }
func ipTarget(a netip.Addr) part { return ipv4(ipTargetAt, a) }

// ifname matches a whole interface name: 16 bytes, padded with zeros (IFNAMSIZ).
func ifname(key expr.MetaKey, op expr.CmpOp, name string) part {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return part{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: padded},
	}
}

// ipv4 matches an address at an offset of the IPv4 header. The protocol is that
// inside a VLAN tag, where the frame has one.
func ipv4(offset uint32, a netip.Addr) part {
	return network(unix.ETH_P_IP, offset, expr.CmpOpEq, a)
}

// notIPTarget matches IPv4 packets to any other address.
func notIPTarget(a netip.Addr) part { return network(unix.ETH_P_IP, ipTargetAt, expr.CmpOpNeq, a) }

// arpSender and arpTarget match the protocol addresses of an ARP packet.
func arpSender(a netip.Addr) part { return network(unix.ETH_P_ARP, arpSenderAt, expr.CmpOpEq, a) }
func arpTarget(a netip.Addr) part { return network(unix.ETH_P_ARP, arpTargetAt, expr.CmpOpEq, a) }

// arpSenderMAC matches the hardware address that an ARP packet tells of its
// sender, whatever the frame's source is.
func arpSenderMAC(mac net.HardwareAddr) part {
	return append(protocol(unix.ETH_P_ARP), payload(expr.PayloadBaseNetworkHeader, 8, mac)...)
}

func network(etherType uint16, offset uint32, op expr.CmpOp, a netip.Addr) part {
	return append(protocol(etherType),
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: op, Register: register, Data: a.AsSlice()},
	)
}

// protocol matches the EtherType, behind the outermost VLAN tag where the frame
// has one.
func protocol(etherType uint16) part {
	return part{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, etherType)},
	}
}

// ipFragment matches a piece of an IPv4 packet: more fragments follow, or it is
// not at the beginning (RFC 791).
func ipFragment() part {
	return append(protocol(unix.ETH_P_IP), masked(expr.PayloadBaseNetworkHeader, 6, 0x3fff, expr.CmpOpNeq)...)
}

// ipOptions matches an IPv4 header with options: its first byte is the version
// and the header's length in words, of which there are five without any.
func ipOptions() part {
	return append(protocol(unix.ETH_P_IP),
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: []byte{0x45}},
	)
}

// payload matches bytes of the frame.
func payload(base expr.PayloadBase, offset uint32, data []byte) part {
	return part{
		&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data},
	}
}

func etherTarget(mac net.HardwareAddr) part { return ether(0, mac) }
func etherSource(mac net.HardwareAddr) part { return ether(6, mac) }

func ether(offset uint32, mac net.HardwareAddr) part {
	return payload(expr.PayloadBaseLLHeader, offset, mac)
}

// tcpTarget matches TCP segments to a port (RFC 9293).
func tcpTarget(port uint16) part {
	return part{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// toPort changes the port that a connection goes to, and not its address.
func toPort(port uint16) part {
	return part{
		&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegProtoMin: register},
	}
}

func setEtherTarget(mac net.HardwareAddr) part {
	return part{
		&expr.Immediate{Register: register, Data: mac},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: register, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
	}
}
