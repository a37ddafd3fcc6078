package main

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// takeTable makes the table imds of the bridge family the property of a
// netlink socket: nobody else may change it until giveBack closes the socket,
// which deletes the table (NFT_TABLE_F_OWNER of
// include/uapi/linux/netfilter/nf_tables.h).
func takeTable(t *testing.T, pod *podnet.Pod) (giveBack func()) {
	t.Helper()
	var socket int
	must(t, pod.Pod.Do(func() (err error) {
		socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	}))
	const (
		subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
		owner     = 0x2
	)
	name := attribute(unix.NFTA_TABLE_NAME, []byte("imds\x00"))
	flags := attribute(unix.NFTA_TABLE_FLAGS, binary.BigEndian.AppendUint32(nil, owner))
	batch := slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
		message(subsystem|unix.NFT_MSG_DELTABLE, 0, unix.NFPROTO_BRIDGE, 0, name),
		message(subsystem|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_ACK, unix.NFPROTO_BRIDGE, 0, name, flags),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
	)
	must(t, unix.Sendto(socket, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 4096)
	_, _, err := unix.Recvfrom(socket, answer, 0)
	must(t, err)
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		t.Fatalf("take table imds: %v", unix.Errno(-code))
	}
	return func() { unix.Close(socket) }
}

// message is a netlink message of nfnetlink (struct nlmsghdr, struct nfgenmsg).
func message(kind, flags int, family byte, resource uint16, attributes ...[]byte) []byte {
	body := binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	body = slices.Concat(append([][]byte{body}, attributes...)...)
	header := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	header = binary.NativeEndian.AppendUint16(header, uint16(kind))
	header = binary.NativeEndian.AppendUint16(header, uint16(flags|unix.NLM_F_REQUEST))
	return slices.Concat(header, make([]byte, 8), body)
}

// attribute is a netlink attribute (struct nlattr), padded to four bytes.
func attribute(kind uint16, value []byte) []byte {
	header := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	header = binary.NativeEndian.AppendUint16(header, kind)
	padding := make([]byte, (4-len(value)%4)%4)
	return slices.Concat(header, value, padding)
}
