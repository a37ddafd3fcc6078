package podnet

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Offsets in struct tpacket_auxdata of include/uapi/linux/if_packet.h, and its
// size, in bytes.
const (
	auxStatus       = 0
	auxVLANInfo     = 16
	auxVLANProtocol = 18
	auxSize         = 20
)

// withTag returns a copy of a captured frame with its outermost VLAN tag, which
// the kernel has taken off and gives beside it (PACKET_AUXDATA of packet(7)).
func withTag(frame, control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(frame) < 12 {
		return slices.Clone(frame)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < auxSize ||
			binary.NativeEndian.Uint32(m.Data[auxStatus:])&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		tag := binary.BigEndian.AppendUint16(nil, binary.NativeEndian.Uint16(m.Data[auxVLANProtocol:]))
		tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[auxVLANInfo:]))
		return slices.Concat(frame[:12], tag, frame[12:])
	}
	return slices.Clone(frame)
}
