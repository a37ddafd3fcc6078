// Package dhcp has the DHCP server that KubeVirt runs: one for each of the VM's networks, in the pod, that knows one client
// and gives it for ever what the CNI plugin gave to the pod (KubeVirt: pkg/network/dhcp).
package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// infinite is how long KubeVirt's leases last.
const infinite = 999 * 24 * time.Hour

// Lease is what the client is given.
type Lease struct {
	// MAC of the client. No other is answered.
	MAC net.HardwareAddr
	// Address of the client, and its network's length.
	Address netip.Prefix
	// Router is the default gateway. Not valid: none.
	Router netip.Addr
	// Routes replace the router for clients that know them (RFC 3442). nil: none.
	Routes []Route
	// MTU in bytes.
	MTU int
}

// Route is a classless static route.
type Route struct {
	To  netip.Prefix
	Via netip.Addr // not valid: on the link
}

// Masquerade is the lease of a guest behind KubeVirt's NAT.
func Masquerade(mac net.HardwareAddr, mtu int) Lease {
	return Lease{
		MAC:     mac,
		Address: netip.PrefixFrom(podnet.MasqueradeGuestAddr, 24),
		Router:  podnet.MasqueradeGateway,
		MTU:     mtu,
	}
}

// OfInterface is the lease of a guest that takes over an interface of the pod, as it is before the pod is wired: its
// MAC and address, and all its routes but those that its address makes.
func OfInterface(pod *podnet.Namespace, name string) (Lease, error) {
	link, err := pod.Netlink().LinkByName(name)
	if err != nil {
		return Lease{}, fmt.Errorf("lease of %s: %w", name, err)
	}
	addresses, err := pod.Netlink().AddrList(link, netlink.FAMILY_V4)
	if err == nil && len(addresses) == 0 {
		err = fmt.Errorf("it has no IPv4 address: KubeVirt starts no DHCP server for it")
	}
	if err != nil {
		return Lease{}, fmt.Errorf("lease of %s: %w", name, err)
	}
	routes, err := pod.Netlink().RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return Lease{}, fmt.Errorf("routes of %s: %w", name, err)
	}
	lease := Lease{MAC: link.Attrs().HardwareAddr, Address: prefix(addresses[0].IPNet), MTU: link.Attrs().MTU}
	if len(routes) > 0 {
		lease.Router = addr(routes[0].Gw)
	}
	if len(routes) > 1 {
		lease.Routes = classless(routes, addresses[0].IP)
	}
	return lease, nil
}

// classless are the routes without those that the interface's own address makes; the default route is the last,
// since its gateway may need another.
func classless(routes []netlink.Route, own net.IP) []Route {
	var others, defaults []Route
	for _, r := range routes {
		route := Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: addr(r.Gw)}
		if r.Dst != nil {
			route.To = prefix(r.Dst)
		}
		switch {
		case r.Src.Equal(own):
		case route.To.Bits() == 0:
			defaults = append(defaults, route)
		default:
			others = append(others, route)
		}
	}
	return append(others, defaults...)
}

// options are the lease as DHCP has it.
func (l Lease) options() []dhcpv4.Modifier {
	modifiers := []dhcpv4.Modifier{
		dhcpv4.WithYourIP(l.Address.Addr().AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(infinite)),
		dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.CIDRMask(l.Address.Bits(), 32))),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(l.MTU))),
	}
	if l.Router.IsValid() {
		modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptRouter(l.Router.AsSlice())))
	}
	var routes []*dhcpv4.Route
	for _, r := range l.Routes {
		via := net.IPv4zero
		if r.Via.IsValid() {
			via = r.Via.AsSlice()
		}
		to := &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), 32)}
		routes = append(routes, &dhcpv4.Route{Dest: to, Router: via})
	}
	if routes != nil {
		modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(routes...)))
	}
	return modifiers
}

// addr and prefix take over what netlink says of IPv4. No address is one that is not valid.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

func prefix(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), ones)
}
