package links

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// conf is the IPv4 configuration of the device that makes it the endpoint. The
// numbers are the IPV4_DEVCONF_* of include/uapi/linux/ip.h.
var conf = []struct {
	number int
	value  uint32
}{
	// accept_local: in bridge binding the guest's own address is local to the pod
	// too, on a dummy; the kernel drops a packet from a local address otherwise.
	{23, 1},
	// rp_filter: a question is accepted whichever way its sender would be reached.
	{8, 2},
	// arp_ignore: only the address of the endpoint is answered for: the guest's ARP
	// for its gateway, which is the pod too in masquerade, is not our business.
	{19, 1},
}

// The attributes of a link's address families (include/uapi/linux/if_link.h), and
// the place of disable_ipv6 in the IPv6 configuration (include/uapi/linux/ipv6.h).
const (
	iflaInetConf         = 1
	iflaInet6Conf        = 2
	iflaInet6AddrGenMode = 8
	addrGenModeNone      = 1 // IN6_ADDR_GEN_MODE_NONE
	devconfDisableIPv6   = 26
)

// families is what a link tells of its address families.
type families struct {
	ipv4    []byte // the configuration, a number of 32 bits each
	hasIPv6 bool
	ipv6    []byte // the configuration, likewise
	genMode byte
}

// readFamilies asks by netlink and not in /proc/sys, which needs a file for each.
func readFamilies(link netlink.Link) (f families, err error) {
	answers, err := linkRequest(unix.RTM_GETLINK, link, 0).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return f, fmt.Errorf("read the configuration of %s: %w", link.Attrs().Name, err)
	}
	for _, answer := range answers {
		of := inside(inside(answer[unix.SizeofIfInfomsg:])[unix.IFLA_AF_SPEC])
		f.ipv4 = inside(of[unix.AF_INET])[iflaInetConf]
		ipv6 := inside(of[unix.AF_INET6])
		f.ipv6, f.hasIPv6 = ipv6[iflaInet6Conf]
		if mode := ipv6[iflaInet6AddrGenMode]; len(mode) == 1 {
			f.genMode = mode[0]
		}
	}
	return f, nil
}

// inside returns the attributes that another holds, by their kind. What cannot be
// parsed holds none.
func inside(data []byte) map[uint16][]byte {
	attributes := map[uint16][]byte{}
	parsed, _ := nl.ParseRouteAttr(data)
	for _, a := range parsed {
		attributes[a.Attr.Type&^unix.NLA_F_NESTED] = a.Value
	}
	return attributes
}

// at is a number of a configuration, 0 where it has none.
func at(configuration []byte, place int) uint32 {
	if len(configuration) < 4*(place+1) {
		return 0
	}
	return binary.NativeEndian.Uint32(configuration[4*place:])
}

func linkRequest(command int, link netlink.Link, flags int) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(command, flags)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(link.Attrs().Index)
	request.AddData(message)
	return request
}

// ensureConf sets the IPv4 configuration by netlink: /proc/sys is read-only in a
// container without privileges, and RTM_SETLINK takes the same values for NET_ADMIN
// (inet_set_link_af in net/ipv4/devinet.c).
func ensureConf(device netlink.Link) (changed bool, err error) {
	have, err := readFamilies(device)
	if err != nil {
		return false, err
	}
	right := true
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	values := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(iflaInetConf|unix.NLA_F_NESTED, nil)
	for _, c := range conf {
		values.AddRtAttr(c.number, nl.Uint32Attr(c.value))
		right = right && at(have.ipv4, c.number-1) == c.value
	}
	if right {
		return false, nil
	}
	request := linkRequest(unix.RTM_SETLINK, device, unix.NLM_F_ACK)
	request.AddData(spec)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return false, fmt.Errorf("set the IPv4 configuration of %s: %w", wiring.Device, err)
	}
	return true, nil
}

// ensureNoOwnIPv6 keeps the kernel from giving a link an IPv6 address of its own
// making, as it does when the link comes up, or has an MTU again that IPv6 can be
// with.
func ensureNoOwnIPv6(link netlink.Link) (changed bool, err error) {
	have, err := readFamilies(link)
	if err != nil || !have.hasIPv6 || have.genMode == addrGenModeNone {
		return false, err
	}
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
		return false, fmt.Errorf("switch off IPv6 addresses on %s: %w", link.Attrs().Name, err)
	}
	return true, nil
}

// bridgePort is what a port of a bridge tells of itself.
type bridgePort struct {
	forwarding bool
	isolated   bool
}

// The attributes of a bridge port (include/uapi/linux/if_link.h), and the state in
// which it passes frames (include/uapi/linux/if_bridge.h).
const (
	brportState      = 1
	brportIsolated   = 33
	stateForwarding  = 3
	attributesOfPort = unix.IFLA_PROTINFO | unix.NLA_F_NESTED
)

// readPorts lists the ports of all bridges by the index of the link.
func readPorts() (map[int]bridgePort, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list the ports of the bridges: %w", err)
	}
	ports := map[int]bridgePort{}
	for _, answer := range answers {
		info, ok := inside(answer[unix.SizeofIfInfomsg:])[unix.IFLA_PROTINFO]
		if !ok { // the bridge itself
			continue
		}
		flags := inside(info)
		state, isolated := flags[brportState], flags[brportIsolated]
		ports[int(nl.DeserializeIfInfomsg(answer).Index)] = bridgePort{
			forwarding: len(state) == 1 && state[0] == stateForwarding,
			isolated:   len(isolated) == 1 && isolated[0] != 0,
		}
	}
	return ports, nil
}

// setPort makes a bridge port isolated or not, and, where it is not, forwarding.
func setPort(link netlink.Link, have bridgePort, isolated bool) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_BRIDGE)
	message.Index = int32(link.Attrs().Index)
	request.AddData(message)
	info := nl.NewRtAttr(attributesOfPort, nil)
	info.AddRtAttr(brportIsolated, nl.Uint8Attr(map[bool]uint8{true: 1}[isolated]))
	if !have.forwarding && link.Attrs().Name == wiring.Port {
		info.AddRtAttr(brportState, nl.Uint8Attr(stateForwarding))
	}
	request.AddData(info)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set the flags of bridge port %s: %w", link.Attrs().Name, err)
	}
	return nil
}
