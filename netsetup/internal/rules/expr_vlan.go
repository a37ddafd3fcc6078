package rules

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// vlanTags are the EtherTypes of a VLAN tag: of a customer (802.1Q) and of a
// provider (802.1ad), which is the outer one of two (QinQ).
var vlanTags = []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD}

// The kernel takes the outermost tag off the frame and keeps it beside; the
// link-layer header still reads as if it were there, but the protocol is that
// which follows.
const (
	tagAt     = 12 // EtherType of the tag
	tagInfoAt = 14 // its priority and VLAN identifier
)

// inVLAN matches frames of a VLAN. A tag with VLAN identifier 0 gives a priority
// only: such a frame is in no VLAN (IEEE 802.1Q section 6.9).
func inVLAN(tag uint16) part {
	return append(payload(expr.PayloadBaseLLHeader, tagAt, binary.BigEndian.AppendUint16(nil, tag)), vlanID(expr.CmpOpNeq)...)
}

// tagInPriorityTag matches frames with one more tag behind one that gives a
// priority only.
func tagInPriorityTag(tag uint16) part {
	return append(protocol(tag), vlanID(expr.CmpOpEq)...)
}

// vlanID compares the VLAN identifier of the outermost tag with 0.
func vlanID(op expr.CmpOp) part {
	return masked(expr.PayloadBaseLLHeader, tagInfoAt, 0x0fff, op)
}

// masked compares some bits of a 16-bit field with 0.
func masked(base expr.PayloadBase, offset uint32, mask uint16, op expr.CmpOp) part {
	return part{
		&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 2, Mask: binary.BigEndian.AppendUint16(nil, mask), Xor: []byte{0, 0}},
		&expr.Cmp{Op: op, Register: register, Data: []byte{0, 0}},
	}
}
