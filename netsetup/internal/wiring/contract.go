package wiring

import (
	"net"
	"net/netip"
)

// The endpoint is a veth pair: [Device] carries the addresses, [Port] is a port
// of the VM's bridge. imds-server binds its listener to Device.
const (
	Device = "veth-imds"
	Port   = "veth-imds-br"
)

// Address is where every guest looks for its metadata service. It is carried
// with scope link, so that the kernel never picks it as the source address of
// the pod's other connections (inet_select_addr in net/ipv4/devinet.c).
var Address = netip.MustParsePrefix("169.254.169.254/32")

// AddressIPv6 is where a guest without IPv4 looks: OpenStack's convention, which
// cloud-init knows. It is link-local: it means nothing beyond the guest's link.
var AddressIPv6 = netip.MustParsePrefix("fe80::a9fe:a9fe/64")

// DeviceMAC is the same in every pod, so that a guest's ARP entry stays right
// after a live migration.
var DeviceMAC = net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe}

// PortMAC is the highest unicast MAC that is locally administered, but for
// its last bit. A bridge without a MAC of its own takes the lowest of its
// ports' (br_stp_recalculate_bridge_id in net/bridge/br_stp_if.c); with this
// one it never takes ours.
var PortMAC = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xfe}

// GuestsMAC is where the pod's own stack sends all answers to. No interface has it:
// the rules change it to the MAC that the question came from.
var GuestsMAC = net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xff}

// Gateway and GatewayIPv6 are the addresses that stand for [GuestsMAC] in the pod's
// routes. Nobody has them.
var (
	Gateway     = netip.MustParseAddr("169.254.169.253")
	GatewayIPv6 = netip.MustParseAddr("fe80::a9fe:a9ff")
)
