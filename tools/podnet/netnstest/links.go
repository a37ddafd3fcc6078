package netnstest

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddVeth makes a veth pair, both ends down. The peer is made in the namespace
// to, or in the caller's if that is nil.
func AddVeth(name, peer string, to *Namespace) error {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: peer}
	pair.Name = name
	if to != nil {
		pair.PeerNamespace = netlink.NsFd(to.FD())
	}
	return netlink.LinkAdd(pair)
}

// DeleteLink deletes a link, and with it the other end of a veth pair.
func DeleteLink(name string) error {
	return onLink(name, netlink.LinkDel)
}

// SetUp sets a link up.
func SetUp(name string) error {
	return onLink(name, netlink.LinkSetUp)
}

// AddAddress gives a link an address, which is there at once.
func AddAddress(name string, address netip.Prefix) error {
	return onLink(name, func(link netlink.Link) error { return netlink.AddrAdd(link, addr(address)) })
}

// DeleteAddress takes an address from a link.
func DeleteAddress(name string, address netip.Prefix) error {
	return onLink(name, func(link netlink.Link) error { return netlink.AddrDel(link, addr(address)) })
}

func addr(a netip.Prefix) *netlink.Addr {
	bits := a.Addr().BitLen()
	made := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), bits)}}
	if a.Addr().Is6() {
		made.Flags = unix.IFA_F_NODAD
	}
	return made
}

// AddLoopbackRoute makes 127.0.0.0/8 local by a link, for sockets that are bound to
// it: what imds-init does in a table of its own.
func AddLoopbackRoute(name string) error {
	return onLink(name, func(link netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: unix.RT_TABLE_MAIN,
			Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		})
	})
}

func onLink(name string, do func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = do(link)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
