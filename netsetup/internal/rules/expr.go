package rules

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// part is a piece of a rule: one match or one statement, as expressions of
// nf_tables. Each part uses the registers anew.
type part []expression

// expression is one of the library's, or one of ours that needs more than itself:
// a lookup in an anonymous set, or what the library does not know.
type expression any

// raw is an expression that the library does not know: its name, and its attributes
// in the kernel's form.
type raw struct {
	name       string
	attributes []*nl.RtAttr
}

// oneOf looks up register 1 in an anonymous set.
type oneOf struct {
	kind     setType
	elements [][]byte
	not      bool
}

// setType is the type of a set's key or of a map's data: its length in bytes, and
// the number by which nft(8) knows it (enum datatypes in nftables'
// include/datatype.h).
type setType struct{ length, number uint32 }

var (
	ipv4Addr   = setType{4, 7}
	etherAddr  = setType{6, 9}
	etherType  = setType{2, 10}
	ifaceIndex = setType{4, 20}
	ifaceName  = setType{unix.IFNAMSIZ, 41}
	byteValue  = setType{1, 5}

	// An address and a port, each in 32-bit registers of their own.
	ipv4Sender = setType{4 + 4, 7<<6 | 13}
	ipv6Sender = setType{16 + 4, 8<<6 | 13}
)

// The registers, of 16 bytes each, of which the first may hold a verdict only.
const (
	register  = unix.NFT_REG_1
	register2 = unix.NFT_REG_2
	// The same as registers of 4 bytes each, for keys of several parts and the values
	// behind them.
	word0 = unix.NFT_REG32_00
	word1 = unix.NFT_REG32_01
	word4 = unix.NFT_REG32_04
	word8 = unix.NFT_REG32_08
)

// The headers that a payload is counted from.
const (
	ether     = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

// Offsets in the headers of Ethernet, with the VLAN tag that the kernel shows as
// if it were in the frame, of ARP for IPv4 over Ethernet (RFC 826), IPv4 (RFC 791),
// IPv6 (RFC 8200), neighbour discovery directly behind the IPv6 header (RFC 4861)
// and TCP (RFC 9293), in bytes.
const (
	etherTargetAt = 0
	etherSourceAt = 6
	vlanTagAt     = 12
	vlanIDAt      = 14

	arpOperationAt = 6
	arpSenderMACAt = 8
	arpSenderAt    = 14
	arpTargetMACAt = 18
	arpTargetAt    = 24

	ipFragmentAt = 6
	ipTTLAt      = 8
	ipSourceAt   = 12
	ipTargetAt   = 16

	ip6NextHeaderAt = 6
	ip6SourceAt     = 8
	ip6TargetAt     = 24
	ip6Length       = 40

	icmp6ChecksumAt   = ip6Length + 2
	discoveryTargetAt = ip6Length + 8
	discoveryOptionAt = ip6Length + 24

	tcpSourcePortAt = 0
	tcpTargetPortAt = 2
	tcpFlagsAt      = 13
)

// Verdicts and statements without an operand.
var (
	accept  = part{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop    = part{&expr.Verdict{Kind: expr.VerdictDrop}}
	notrack = part{&expr.Notrack{}}

	refuseByReset       = part{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	refuseByICMP        = part{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}} // in the ip family
	refuseByUnreachable = part{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
)

// icmpPortUnreachable is a code of ICMP (RFC 792).
const icmpPortUnreachable = 3

// Interface names.
func iif(names ...string) part    { return ifname(expr.MetaKeyIIFNAME, false, names) }
func notIif(name string) part     { return ifname(expr.MetaKeyIIFNAME, true, []string{name}) }
func oif(names ...string) part    { return ifname(expr.MetaKeyOIFNAME, false, names) }
func notOif(name string) part     { return ifname(expr.MetaKeyOIFNAME, true, []string{name}) }
func notIifKind(kind string) part { return meta(metaIIFKind, expr.CmpOpNeq, padded(kind)) }
func notOifKind(kind string) part { return meta(metaOIFKind, expr.CmpOpNeq, padded(kind)) }

// NFT_META_IIFKIND and NFT_META_OIFKIND of include/uapi/linux/netfilter/nf_tables.h.
const (
	metaIIFKind expr.MetaKey = 26
	metaOIFKind expr.MetaKey = 27
)

func ifname(key expr.MetaKey, not bool, names []string) part {
	values := make([][]byte, len(names))
	for i, name := range names {
		values[i] = padded(name)
	}
	return append(part{&expr.Meta{Key: key, Register: register}}, in(ifaceName, not, values...)...)
}

// padded is a name as the kernel compares it: whole, filled up with zeros.
func padded(name string) []byte {
	full := make([]byte, unix.IFNAMSIZ)
	copy(full, name)
	return full
}

// in compares register 1 with one value, or with each of several.
func in(kind setType, not bool, values ...[]byte) part {
	if len(values) > 1 {
		return part{oneOf{kind, values, not}}
	}
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return part{&expr.Cmp{Op: op, Register: register, Data: values[0]}}
}

func meta(key expr.MetaKey, op expr.CmpOp, value []byte) part {
	return part{&expr.Meta{Key: key, Register: register}, &expr.Cmp{Op: op, Register: register, Data: value}}
}

// load puts bytes of a header into a register.
func load(into uint32, base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: into, Base: base, Offset: offset, Len: length}
}

func equal(base expr.PayloadBase, offset uint32, value []byte) part {
	return compare(expr.CmpOpEq, base, offset, value)
}

func compare(op expr.CmpOp, base expr.PayloadBase, offset uint32, value []byte) part {
	return part{load(register, base, offset, uint32(len(value))), &expr.Cmp{Op: op, Register: register, Data: value}}
}

// masked compares some bits of a 16-bit field with 0.
func masked(op expr.CmpOp, base expr.PayloadBase, offset uint32, mask uint16) part {
	return part{
		load(register, base, offset, 2),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 2, Mask: binary.BigEndian.AppendUint16(nil, mask), Xor: []byte{0, 0}},
		&expr.Cmp{Op: op, Register: register, Data: []byte{0, 0}},
	}
}

// protocol matches the EtherType, behind the outermost VLAN tag where the frame has
// one.
func protocol(kinds ...uint16) part {
	values := make([][]byte, len(kinds))
	for i, kind := range kinds {
		values[i] = binary.BigEndian.AppendUint16(nil, kind)
	}
	return append(part{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: register}}, in(etherType, false, values...)...)
}

func layer4(op expr.CmpOp, protocol byte) part {
	return meta(expr.MetaKeyL4PROTO, op, []byte{protocol})
}

// MAC addresses of the frame.
func etherTarget(macs ...net.HardwareAddr) part { return macIn(ether, etherTargetAt, macs) }
func etherSource(macs ...net.HardwareAddr) part { return macIn(ether, etherSourceAt, macs) }

func macIn(base expr.PayloadBase, offset uint32, macs []net.HardwareAddr) part {
	values := make([][]byte, len(macs))
	for i, mac := range macs {
		values[i] = mac
	}
	return append(part{load(register, base, offset, 6)}, in(etherAddr, false, values...)...)
}

// VLAN tags: of a customer (802.1Q) and of a provider (802.1ad), which is the outer
// one of two. The kernel takes the outermost tag off the frame and keeps it beside;
// the link-layer header still reads as if it were there, but the protocol is that
// which follows. A tag with VLAN identifier 0 gives a priority only: such a frame is
// in no VLAN (IEEE 802.1Q section 6.9).
var (
	vlanTags = []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD}

	inVLAN = join(
		part{load(register, ether, vlanTagAt, 2)},
		in(etherType, false, binary.BigEndian.AppendUint16(nil, vlanTags[0]), binary.BigEndian.AppendUint16(nil, vlanTags[1])),
		masked(expr.CmpOpNeq, ether, vlanIDAt, 0x0fff))
	tagBehindPriorityTag = join(protocol(vlanTags...), masked(expr.CmpOpEq, ether, vlanIDAt, 0x0fff))
)

// ARP packets.
func arpSender(a netip.Addr) part {
	return join(protocol(unix.ETH_P_ARP), equal(network, arpSenderAt, a.AsSlice()))
}
func arpTarget(a netip.Addr) part {
	return join(protocol(unix.ETH_P_ARP), equal(network, arpTargetAt, a.AsSlice()))
}

// arpSenderMAC matches the hardware address that an ARP packet tells of its sender,
// whatever the frame's source is.
func arpSenderMAC(macs ...net.HardwareAddr) part {
	return join(protocol(unix.ETH_P_ARP), macIn(network, arpSenderMACAt, macs))
}

// arpOperation matches a request (1) or a reply (2).
func arpOperation(operation byte) part {
	return join(protocol(unix.ETH_P_ARP), equal(network, arpOperationAt, []byte{0, operation}))
}

const (
	arpRequest = 1
	arpReply   = 2
)

// IPv4 packets.
func ipSource(a netip.Addr) part    { return ip(expr.CmpOpEq, ipSourceAt, a) }
func ipTarget(a netip.Addr) part    { return ip(expr.CmpOpEq, ipTargetAt, a) }
func notIPTarget(a netip.Addr) part { return ip(expr.CmpOpNeq, ipTargetAt, a) }

func ip(op expr.CmpOp, offset uint32, a netip.Addr) part {
	return join(protocol(unix.ETH_P_IP), compare(op, network, offset, a.AsSlice()))
}

var (
	// ipFragment matches a piece of an IPv4 packet: more fragments follow, or it is
	// not at the beginning.
	ipFragment = join(protocol(unix.ETH_P_IP), masked(expr.CmpOpNeq, network, ipFragmentAt, 0x3fff))
	// ipOptions matches an IPv4 header with options: its first byte is the version
	// and the header's length in words, of which there are five without any.
	ipOptions = join(protocol(unix.ETH_P_IP), compare(expr.CmpOpNeq, network, 0, []byte{0x45}))
)

// notUsualTTL matches a TTL that no system begins with: the packet has been routed.
var notUsualTTL = join(protocol(unix.ETH_P_IP), part{load(register, network, ipTTLAt, 1), oneOf{byteValue, [][]byte{{64}, {128}, {255}}, true}})

// icmpUnreachable matches an ICMP error about a packet of ours, such as one that was too
// long for a link beyond the guest (RFC 1191).
var icmpUnreachable = join(protocol(unix.ETH_P_IP), layer4(expr.CmpOpEq, unix.IPPROTO_ICMP), equal(transport, 0, []byte{3}))

// otherListener matches what a socket gets that listens on every address: not the
// server's, which is bound to its own.
var otherListener = part{raw{"socket", []*nl.RtAttr{number(1, 2), number(2, register)}}, &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{1}}}

// TCP.
func tcpFrom(port uint16) part {
	return join(layer4(expr.CmpOpEq, unix.IPPROTO_TCP), equal(transport, tcpSourcePortAt, binary.BigEndian.AppendUint16(nil, port)))
}

func tcpTo(port uint16) part {
	return join(layer4(expr.CmpOpEq, unix.IPPROTO_TCP), equal(transport, tcpTargetPortAt, binary.BigEndian.AppendUint16(nil, port)))
}

func tcpNotTo(port uint16) part {
	return join(layer4(expr.CmpOpEq, unix.IPPROTO_TCP), compare(expr.CmpOpNeq, transport, tcpTargetPortAt, binary.BigEndian.AppendUint16(nil, port)))
}

// tcpOpens matches the first segment of a connection: SYN without ACK.
var tcpOpens = part{
	&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
	&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_TCP}},
	load(register, transport, tcpFlagsAt, 1),
	&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
	&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{0x02}},
}

// IPv6 packets.
func ip6Source(a netip.Addr) part { return join(ip6, equal(network, ip6SourceAt, a.AsSlice())) }
func ip6Target(a netip.Addr) part { return join(ip6, equal(network, ip6TargetAt, a.AsSlice())) }

// ip6Next and ip6NextNot match what follows directly behind the IPv6 header.
func ip6Next(protocol byte) part { return join(ip6, equal(network, ip6NextHeaderAt, []byte{protocol})) }
func ip6NextNot(protocol byte) part {
	return join(ip6, compare(expr.CmpOpNeq, network, ip6NextHeaderAt, []byte{protocol}))
}

// icmp6 matches a message of ICMPv6 directly behind the IPv6 header.
func icmp6(message byte) part {
	return join(ip6Next(unix.IPPROTO_ICMPV6), equal(network, ip6Length, []byte{message}))
}

// Messages of ICMPv6 (RFC 4443, RFC 4861).
const (
	unreachable            = 1
	echoRequest            = 128
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

var (
	ip6 = protocol(unix.ETH_P_IPV6)
	// fromLinkLocal matches a source in fe80::/64. Whoever speaks with a link-local
	// address has one (RFC 4862), and no other is behind the endpoint's device.
	fromLinkLocal = join(ip6, equal(network, ip6SourceAt, []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0}))
)

// sourceOption matches a message of neighbour discovery with an option at the offset that
// tells its sender's MAC.
func sourceOption(at uint32) part { return equal(network, at, []byte{1, 1}) }

// discovery matches a message of neighbour discovery about an address, directly
// behind the IPv6 header.
func discovery(message byte, target netip.Addr) part {
	return join(icmp6(message), equal(network, discoveryTargetAt, target.AsSlice()))
}

// discoveryAnywhere is discovery also behind extension headers.
func discoveryAnywhere(message byte, target netip.Addr) part {
	return join(ip6, layer4(expr.CmpOpEq, unix.IPPROTO_ICMPV6), equal(transport, 0, []byte{message}), equal(transport, 8, target.AsSlice()))
}

// Statements that change the packet.

func setEtherTarget(mac net.HardwareAddr) part { return set(ether, etherTargetAt, mac) }

func set(base expr.PayloadBase, offset uint32, value []byte) part {
	return part{&expr.Immediate{Register: register, Data: value}, store(base, offset, uint32(len(value)))}
}

// store writes register 1 into a header that no checksum covers.
func store(base expr.PayloadBase, offset, length uint32) expression {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: register, Base: base, Offset: offset, Len: length}
}

// setIP6 changes an address of the IPv6 header, and with it the checksum of what
// follows, whose pseudo-header it is part of.
func setIP6(offset uint32, a netip.Addr) part {
	return part{&expr.Immediate{Register: register, Data: a.AsSlice()}, raw{"payload", []*nl.RtAttr{
		number(unix.NFTA_PAYLOAD_SREG, register),
		number(unix.NFTA_PAYLOAD_BASE, uint32(network)),
		number(unix.NFTA_PAYLOAD_OFFSET, offset),
		number(unix.NFTA_PAYLOAD_LEN, 16),
		number(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_NONE),
		number(unix.NFTA_PAYLOAD_CSUM_FLAGS, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR),
	}}}
}

// hideSourceOption makes the option that [sourceOption] matches one that nobody
// knows (253 is for experiments, RFC 4727).
func hideSourceOption(at uint32) part {
	return part{&expr.Immediate{Register: register, Data: []byte{253, 1}}, &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: register, Base: network, Offset: at, Len: 2,
		CsumType: expr.CsumTypeInet, CsumOffset: icmp6ChecksumAt,
	}}
}

// toPort changes the port that a connection goes to, and not its address.
func toPort(port uint16) part {
	return part{
		&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegProtoMin: register},
	}
}

// Statements about maps, which packets fill and packets read.

// remember adds the value to a map under the key, where there is room for it and none
// is there.
func remember(m string, key, value expression) part {
	return part{key, value, &expr.Dynset{SrcRegKey: register, SrcRegData: register2, SetName: m, Operation: unix.NFT_DYNSET_OP_ADD}}
}

// keep is remember, and begins the time anew of what is there.
func keep(m string, key, value expression) part {
	return part{key, value, &expr.Dynset{SrcRegKey: register, SrcRegData: register2, SetName: m, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}

// forget deletes the key from a map. The kernel wants a value, and does not look at it.
func forget(m string, key, value expression) part {
	return part{key, value, &expr.Dynset{SrcRegKey: register, SrcRegData: register2, SetName: m, Operation: dynsetDelete}}
}

// dynsetDelete is NFT_DYNSET_OP_DELETE of include/uapi/linux/netfilter/nf_tables.h.
const dynsetDelete = 2

// keepSender begins the time anew of a sender's value in a map, or adds it where there is
// room.
func keepSender(m string, sender part, value expression) part {
	return append(join(sender, part{value}), &expr.Dynset{SrcRegKey: word0, SrcRegData: word8, SetName: m, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

// etherTargetFrom sets the frame's target to what the map has under the key, and
// fails to match where it has nothing.
func etherTargetFrom(m string, key ...expression) part {
	return append(part(key), &expr.Lookup{SourceRegister: word0, DestRegister: register, IsDestRegSet: true, SetName: m}, store(ether, etherTargetAt, 6))
}

// arpTargetFrom sets the protocol address that an ARP packet is for to what the map has
// under the key.
func arpTargetFrom(m string, key expression) part {
	return part{key, &expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: m}, store(network, arpTargetAt, 4)}
}

// forward sends the frame out by an interface, past the bridge.
func forward(index uint32) part {
	return append(part{&expr.Immediate{Register: register, Data: binary.NativeEndian.AppendUint32(nil, index)}}, sendOut)
}

// forwardBy is forward to the interface that the map has under the key.
func forwardBy(m string, key ...expression) part {
	return append(part(key), &expr.Lookup{SourceRegister: word0, DestRegister: register, IsDestRegSet: true, SetName: m}, sendOut)
}

// sendOut is the statement fwd, with NFTA_FWD_SREG_DEV of
// include/uapi/linux/netfilter/nf_tables.h.
var sendOut = raw{"fwd", []*nl.RtAttr{number(1, register)}}

// What keys and values of maps are made of.
var (
	byNIC      = &expr.Meta{Key: expr.MetaKeyIIF, Register: register}
	toNIC      = &expr.Meta{Key: expr.MetaKeyOIF, Register: register}
	byARPMAC   = load(register, network, arpSenderMACAt, 6)
	toARPMAC   = load(register, network, arpTargetMACAt, 6)
	itsMAC     = load(register2, ether, etherSourceAt, 6)
	itsAddress = load(register2, network, arpSenderAt, 4)

	sender     = part{load(word0, network, ipSourceAt, 4), load(word1, transport, tcpSourcePortAt, 2)}
	asker      = part{load(word0, network, ipTargetAt, 4), load(word1, transport, tcpTargetPortAt, 2)}
	senderIPv6 = part{load(register, network, ip6SourceAt, 16), load(word4, transport, tcpSourcePortAt, 2)}
	askerIPv6  = part{load(register, network, ip6TargetAt, 16), load(word4, transport, tcpTargetPortAt, 2)}
	sendersMAC = load(word8, ether, etherSourceAt, 6)
	sendersNIC = &expr.Meta{Key: expr.MetaKeyIIF, Register: word8}
)

func join(parts ...part) (all part) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// number is an attribute with a 32-bit number in network byte order, as nf_tables
// has them.
func number(kind int, value uint32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.BigEndian.AppendUint32(nil, value))
}
