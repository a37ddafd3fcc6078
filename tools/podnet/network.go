package podnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is what the CNI plugin makes of the VM's first network.
type Network string

const (
	// Subnet: the pod has an address in a subnet that the router is in.
	Subnet Network = "subnet"
	// Routed: as Calico makes it. The pod has an address of its own, /32, and
	// [RoutedGateway] as its router, for which the node answers by proxy ARP, as
	// it does for every address that it has a route to.
	Routed Network = "routed"
	// Layer2: the pod has no address there, and hence KubeVirt no DHCP server,
	// and the VM's bridge none either. Only in Bridge and ManagedTap.
	Layer2 Network = "layer2"
)

// RoutedGateway is the router of every pod on a network of Calico's. Nobody has
// the address.
var RoutedGateway = netip.MustParseAddr("169.254.1.1")

// calicoMAC is what Calico gives to all of its ends of the pods' uplinks.
var calicoMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// nodeInterface leads from a node of a routed network to everywhere else.
const nodeInterface = "node0"

// primaryNIC describes the VM's first network.
func primaryNIC(o Options) (*nic, error) {
	n := &nic{
		binding:        o.Binding,
		iface:          o.PrimaryInterface,
		uplink:         NeighbourInterface,
		bridge:         "k6t-" + o.PrimaryInterface,
		bridgePort:     o.PrimaryInterface + "-nic",
		tap:            "tap0",
		guestInterface: "eth0",
		podAddr:        netip.PrefixFrom(o.Address, 24),
		neighbourAddr:  netip.PrefixFrom(NeighbourAddr, 24),
		gateway:        NeighbourAddr,
		mtu:            o.MTU,
		guestMAC:       o.GuestMAC,
	}
	if o.NoPodNetwork {
		var err error
		if n, err = secondaryNIC(0, o.PrimaryInterface, o.MTU); err != nil {
			return nil, err
		}
		n.binding = o.Binding
	}
	switch o.Network {
	case Routed:
		n.routed = true
		n.podAddr = netip.PrefixFrom(n.podAddr.Addr(), 32)
		n.gateway = RoutedGateway
	case Layer2:
		n.podAddr = netip.Prefix{}
		n.gateway = netip.Addr{}
	}
	return n, nil
}

// bystanderNIC describes the pod network of a VM that has no part in it. Only
// the CNI plugin knows it.
func bystanderNIC(mtu int) *nic {
	return &nic{
		number:        -1,
		iface:         "eth0",
		uplink:        BystanderInterface,
		podAddr:       netip.PrefixFrom(PodAddr, 24),
		neighbourAddr: netip.PrefixFrom(NeighbourAddr, 24),
		gateway:       NeighbourAddr,
		mtu:           mtu,
	}
}

// becomeRouter is what Calico does on the node, at its end of the pod's uplink: an
// answer to every question of ARP, at once. The node's address is here, where a
// node has it on its NIC: with the last address of a link, such as that of an
// impostor, the kernel deletes all routes by it.
func (p *Pod) becomeRouter(n *nic, uplink netlink.Link) error {
	if err := p.Neighbour.netlink.LinkSetHardwareAddr(uplink, calicoMAC); err != nil {
		return fmt.Errorf("MAC %s of %s: %w", calicoMAC, n.uplink, err)
	}
	if err := p.answerForAll(n.uplink); err != nil {
		return err
	}
	if err := p.Neighbour.bringUp(uplink, calicoMAC, netip.PrefixFrom(n.neighbourAddr.Addr(), 32)); err != nil {
		return err
	}
	if err := p.Neighbour.routeOnLink(uplink, n.podAddr); err != nil {
		return err
	}
	return p.leadTo(nodeInterface)
}

// answerForAll has the neighbour answer ARP on an uplink for every address that it
// has a way to, at once.
func (p *Pod) answerForAll(uplink string) error {
	for _, s := range []struct{ key, value string }{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/" + uplink + "/proxy_arp", "1"},
		{"net/ipv4/neigh/" + uplink + "/proxy_delay", "0"},
	} {
		if err := p.Neighbour.Sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// leadTo gives the neighbour a way to all addresses, by a new interface behind
// which there is nothing: a bridge without ports, since the dummy driver is not
// everywhere.
func (p *Pod) leadTo(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := p.Neighbour.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("%s of the neighbour: %w", name, err)
	}
	if err := p.Neighbour.setUp(name); err != nil {
		return err
	}
	link, err := p.Neighbour.link(name)
	if err != nil {
		return err
	}
	return p.Neighbour.routeOnLink(link, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
}

// giveRouter gives a link what leads everywhere, where there is something.
func (n *Namespace) giveRouter(link netlink.Link, routed bool, gateway netip.Addr) error {
	if !gateway.IsValid() {
		return nil
	}
	if routed {
		// No address makes it reachable.
		if err := n.routeOnLink(link, netip.PrefixFrom(gateway, 32)); err != nil {
			return err
		}
	}
	return n.addDefaultRoute(gateway)
}

// routeOnLink makes addresses reachable on a link without a router.
func (n *Namespace) routeOnLink(link netlink.Link, to netip.Prefix) error {
	err := n.netlink.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Scope:     unix.RT_SCOPE_LINK,
		Dst:       &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)},
	})
	if err != nil {
		return fmt.Errorf("route to %s by %s in %s: %w", to, link.Attrs().Name, n.name, err)
	}
	return nil
}

// Bridge is the name of the bridge of the VM's first network.
func (p *Pod) Bridge() string { return p.primary.bridge }

// Tap is the name of the tap of the VM's first network.
func (p *Pod) Tap() string { return p.primary.tap }
