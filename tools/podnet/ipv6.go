package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// The fixed IPv6 addresses of the pod network, and of KubeVirt's masquerade
// network fd10:0:2::/120. The guest of bridge binding has its link-local address
// alone.
var (
	NeighbourIPv6Addr       = netip.MustParseAddr("fd00:10:244::1")
	PodIPv6Addr             = netip.MustParseAddr("fd00:10:244::5")
	MasqueradeGuestIPv6Addr = netip.MustParseAddr("fd10:0:2::2")
	MasqueradeIPv6Gateway   = netip.MustParseAddr("fd10:0:2::1")
)

// Prefix lengths of the two networks.
const (
	podIPv6Bits        = 64
	masqueradeIPv6Bits = 120
)

// HasIPv6 says whether this machine's kernel speaks IPv6.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// SpeaksIPv6 says whether the pod's network is one of both families.
func (p *Pod) SpeaksIPv6() bool { return HasIPv6() && !p.options.WithoutIPv6 }

// disableIPv6 switches IPv6 off in a namespace, for what is there and for what
// comes.
func (n *Namespace) disableIPv6() error {
	for _, conf := range []string{"all", "default"} {
		if err := n.Sysctl("net.ipv6.conf."+conf+".disable_ipv6", "1"); err != nil {
			return err
		}
	}
	return nil
}

// setUpWithLinkLocal sets an interface up with the link-local address that the
// kernel would give it (RFC 4291 appendix A), but without duplicate address
// detection: for a second, and then at some moment that no event tells, the
// kernel would take another source or none.
func (n *Namespace) setUpWithLinkLocal(link netlink.Link, mac net.HardwareAddr) error {
	if !HasIPv6() {
		return n.netlink.LinkSetUp(link)
	}
	const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h
	if err := n.netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
		return fmt.Errorf("%s in %s without an address of the kernel's making: %w", link.Attrs().Name, n.name, err)
	}
	if err := n.netlink.LinkSetUp(link); err != nil {
		return err
	}
	addr := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 0x02, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return n.assign(link, netip.PrefixFrom(netip.AddrFrom16(addr), podIPv6Bits))
}

// plugUplinkIPv6 is the CNI plugin's part on the pod network.
func (p *Pod) plugUplinkIPv6(n *nic) error {
	if !p.SpeaksIPv6() {
		return nil
	}
	for _, end := range []struct {
		in   *Namespace
		name string
		addr netip.Addr
	}{{p.Neighbour, n.uplink, NeighbourIPv6Addr}, {p.Pod, n.iface, PodIPv6Addr}} {
		link, err := end.in.link(end.name)
		if err != nil {
			return err
		}
		if err := end.in.assign(link, netip.PrefixFrom(end.addr, podIPv6Bits)); err != nil {
			return err
		}
	}
	return p.Pod.addDefaultRoute(NeighbourIPv6Addr)
}

// masqueradeIPv6 is virt-handler's part on a pod network of both families.
func (p *Pod) masqueradeIPv6(n *nic) error {
	if !p.SpeaksIPv6() {
		return nil
	}
	bridge, err := p.Pod.link(n.bridge)
	if err != nil {
		return err
	}
	if err := p.Pod.assign(bridge, netip.PrefixFrom(MasqueradeIPv6Gateway, masqueradeIPv6Bits)); err != nil {
		return err
	}
	if err := p.Pod.Sysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
		return err
	}
	return p.translateAddresses(n, ipv6NAT)
}

// configureNICIPv6 is what the guest's administrator sets, or cloud-init's
// network configuration: KubeVirt has no DHCPv6 server for masquerade's gateway.
func (p *Pod) configureNICIPv6(n *nic, link netlink.Link) error {
	if !p.SpeaksIPv6() || n.binding != Masquerade {
		return nil
	}
	if err := p.Guest.assign(link, netip.PrefixFrom(MasqueradeGuestIPv6Addr, masqueradeIPv6Bits)); err != nil {
		return err
	}
	return p.Guest.addDefaultRoute(MasqueradeIPv6Gateway)
}

// LinkLocal returns the link-local IPv6 address of an interface.
func (n *Namespace) LinkLocal(name string) (netip.Addr, error) {
	link, err := n.link(name)
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := n.netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.IsLinkLocalUnicast() && addr != MetadataIPv6Addr {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("interface %s in %s has no link-local address", name, n.name)
}

// MetadataOn returns the service's IPv6 address with its port, as it is dialed
// by way of an interface. The zone is a number: the names of another namespace's
// interfaces are remembered for a minute by package net.
func (n *Namespace) MetadataOn(name string) (netip.AddrPort, error) {
	link, err := n.link(name)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(MetadataIPv6Addr.WithZone(fmt.Sprint(link.Attrs().Index)), 80), nil
}

// MetadataURL is what a client asks for the service by way of an interface, as a
// URL has a zone (RFC 6874).
func (n *Namespace) MetadataURL(name string) (string, error) {
	at, err := n.MetadataOn(name)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("http://[%s%%25%s]", MetadataIPv6Addr, at.Addr().Zone()), nil
}
