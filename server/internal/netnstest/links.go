package netnstest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// Attributes of linux/if_link.h and linux/veth.h that package syscall has not.
const (
	iflaInfoKind = 1
	iflaInfoData = 2
	vethInfoPeer = 1
)

// AddVeth makes a veth pair, both ends down. The peer is made in the namespace
// to, or in the caller's if that is nil.
func AddVeth(name, peer string, to *Namespace) error {
	peerInfo := append(make([]byte, syscall.SizeofIfInfomsg), attribute(syscall.IFLA_IFNAME, zeroTerminated(peer))...)
	if to != nil {
		peerInfo = append(peerInfo, attribute(syscall.IFLA_NET_NS_PID, uint32Bytes(uint32(to.tid)))...)
	}
	linkInfo := append(attribute(iflaInfoKind, []byte("veth")),
		attribute(iflaInfoData, attribute(vethInfoPeer, peerInfo))...)
	return request(syscall.RTM_NEWLINK, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL,
		make([]byte, syscall.SizeofIfInfomsg),
		attribute(syscall.IFLA_IFNAME, zeroTerminated(name)),
		attribute(syscall.IFLA_LINKINFO, linkInfo))
}

// DeleteLink deletes a link, and with it the other end of a veth pair.
func DeleteLink(name string) error {
	return request(syscall.RTM_DELLINK, 0, make([]byte, syscall.SizeofIfInfomsg),
		attribute(syscall.IFLA_IFNAME, zeroTerminated(name)))
}

// SetUp sets a link up.
func SetUp(name string) error {
	// struct ifinfomsg: family, padding, type, index, flags, change mask.
	info := make([]byte, syscall.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(info[8:], syscall.IFF_UP)
	binary.NativeEndian.PutUint32(info[12:], syscall.IFF_UP)
	return request(syscall.RTM_NEWLINK, 0, info, attribute(syscall.IFLA_IFNAME, zeroTerminated(name)))
}

// AddAddress gives a link an address.
func AddAddress(name string, address netip.Prefix) error {
	return changeAddress(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, name, address)
}

// DeleteAddress takes an address from a link.
func DeleteAddress(name string, address netip.Prefix) error {
	return changeAddress(syscall.RTM_DELADDR, 0, name, address)
}

func changeAddress(message uint16, flags uint16, name string, address netip.Prefix) error {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	family := byte(syscall.AF_INET)
	if address.Addr().Is6() {
		family = syscall.AF_INET6
	}
	// struct ifaddrmsg: family, prefix length, flags, scope, index. IFA_F_NODAD:
	// an IPv6 address is there at once.
	info := make([]byte, syscall.SizeofIfAddrmsg)
	info[0], info[1], info[2] = family, byte(address.Bits()), syscall.IFA_F_NODAD
	binary.NativeEndian.PutUint32(info[4:], uint32(device.Index))
	ip := address.Addr().AsSlice()
	return request(message, flags, info, attribute(syscall.IFA_LOCAL, ip), attribute(syscall.IFA_ADDRESS, ip))
}

// AddLoopbackRoute makes 127.0.0.0/8 local by a link, for sockets that are bound to
// it: what imds-init does in a table of its own.
func AddLoopbackRoute(name string) error {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// struct rtmsg: family, prefix lengths of destination and source, TOS, table,
	// protocol, scope, type, flags.
	route := []byte{syscall.AF_INET, 8, 0, 0, syscall.RT_TABLE_MAIN, syscall.RTPROT_STATIC, syscall.RT_SCOPE_HOST, syscall.RTN_LOCAL, 0, 0, 0, 0}
	return request(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, route,
		attribute(syscall.RTA_DST, []byte{127, 0, 0, 0}),
		attribute(syscall.RTA_OIF, uint32Bytes(uint32(device.Index))))
}

// request sends a message to the kernel and waits for its acknowledgement.
func request(message uint16, flags uint16, parts ...[]byte) error {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket AF_NETLINK", err)
	}
	defer syscall.Close(fd)
	packet := make([]byte, syscall.SizeofNlMsghdr)
	for _, part := range parts {
		packet = append(packet, part...)
	}
	// struct nlmsghdr: length, type, flags, sequence, port.
	binary.NativeEndian.PutUint32(packet[0:], uint32(len(packet)))
	binary.NativeEndian.PutUint16(packet[4:], message)
	binary.NativeEndian.PutUint16(packet[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	if err := syscall.Sendto(fd, packet, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto AF_NETLINK", err)
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom AF_NETLINK", err)
	}
	// struct nlmsgerr follows the header: a negative errno, 0 for success.
	if n < syscall.SizeofNlMsghdr+4 {
		return fmt.Errorf("netlink message %d: the answer has %d bytes", message, n)
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[syscall.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("netlink message %d: %w", message, syscall.Errno(errno))
	}
	return nil
}

// attribute encodes a struct rtattr with its value, padded to 4 bytes.
func attribute(kind uint16, value []byte) []byte {
	length := syscall.SizeofRtAttr + len(value)
	encoded := make([]byte, (length+3)&^3)
	binary.NativeEndian.PutUint16(encoded[0:], uint16(length))
	binary.NativeEndian.PutUint16(encoded[2:], kind)
	copy(encoded[syscall.SizeofRtAttr:], value)
	return encoded
}

func zeroTerminated(s string) []byte {
	return append([]byte(s), 0)
}

func uint32Bytes(v uint32) []byte {
	return binary.NativeEndian.AppendUint32(nil, v)
}
