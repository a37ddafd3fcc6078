package podnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeMAC is what KubeVirt gives to the bridge in masquerade binding.
var bridgeMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}

// bridgeBindingAddr is the address of the bridge in bridge binding, from which
// KubeVirt's DHCP server answers: 169.254.75.10 on the VM's first network,
// 169.254.75.11 on its second.
func (n *nic) bridgeBindingAddr() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 75, byte(10 + n.number)}), 32)
}

// uplinkIndex is the interface index of the neighbour's first uplink. On a node
// the two ends of a pod's uplink have indices far apart. Were they the same
// number, the kernel would take each end for a link without a peer, and let up
// to a second pass before it tells the bridge that its port has carrier
// (linkwatch_urgent_event in net/core/link_watch.c).
const uplinkIndex = 1000

// plugUplink is the CNI plugin: a veth pair between pod and neighbour,
// addresses at both ends, and the default route where the network has one.
func (p *Pod) plugUplink(n *nic) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Index = n.uplink, n.mtu, uplinkIndex+n.number
	pair := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      n.iface,
		PeerMTU:       uint32(n.mtu),
		PeerNamespace: netlink.NsFd(p.Pod.FD()),
	}
	if n.binding != Masquerade {
		pair.PeerHardwareAddr = n.guestMAC // nil: random
	}
	if err := p.Neighbour.netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("veth pair %s and %s: %w", n.uplink, n.iface, err)
	}
	uplink, err := p.Neighbour.link(n.uplink)
	if err != nil {
		return err
	}
	if n.routed {
		err = p.becomeRouter(n, uplink)
	} else {
		err = p.Neighbour.bringUp(uplink, uplink.Attrs().HardwareAddr, n.neighbourAddr)
	}
	if err != nil {
		return err
	}
	link, err := p.Pod.link(n.iface)
	if err != nil {
		return err
	}
	n.podMAC = link.Attrs().HardwareAddr
	if n.guestMAC == nil {
		n.guestMAC = n.podMAC
	}
	if n.podAddr.IsValid() {
		if err := p.Pod.assign(link, n.podAddr); err != nil {
			return err
		}
	}
	if err := p.Pod.netlink.LinkSetUp(link); err != nil {
		return err
	}
	if err := p.Pod.giveRouter(link, n.routed, n.gateway); err != nil || !n.gateway.IsValid() {
		return err
	}
	return p.plugUplinkIPv6(n)
}

// bringUp sets an interface up with its addresses of both families.
func (n *Namespace) bringUp(link netlink.Link, mac net.HardwareAddr, addr netip.Prefix) error {
	if err := n.assign(link, addr); err != nil {
		return err
	}
	return n.setUpWithLinkLocal(link, mac)
}

func (n *Namespace) addDefaultRoute(gateway netip.Addr) error {
	if err := n.netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("default route via %s in %s: %w", gateway, n.name, err)
	}
	return nil
}

// Wire does to the pod what virt-handler does before QEMU starts: the bridge,
// the NAT rules or the renamed uplink and the stand-in for it, and the tap,
// which has no carrier until the guest opens it. For passt it does nothing.
func (p *Pod) Wire() error {
	if p.options.Binding == Passt {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wire(p.primary)
}

// AddSecondaryBridge gives the VM one more network, in bridge binding: an
// uplink of its own to the neighbour (up1 with 10.245.1.1, up2 with 10.245.2.1,
// ...), a bridge k6t-* and a tap*, which is the next NIC of the guest. The
// interface is named as KubeVirt has Multus name it: pod and a hash. On a
// running guest this is NIC hot-plug.
func (p *Pod) AddSecondaryBridge(iface string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wired) == 0 {
		return fmt.Errorf("interface %q: wire the first network first, it is the guest's eth0", iface)
	}
	n, err := secondaryNIC(len(p.wired), iface, p.options.MTU)
	if err != nil {
		return err
	}
	if err := p.plugUplink(n); err != nil {
		return err
	}
	if err := p.wire(n); err != nil {
		return err
	}
	return p.plugCable(n)
}

func (p *Pod) wire(n *nic) error {
	var err error
	if n.binding == Masquerade {
		err = p.wireMasquerade(n)
	} else {
		err = p.wireBridge(n)
	}
	if err != nil {
		return fmt.Errorf("wiring %s in %s binding: %w", n.iface, n.binding, err)
	}
	p.wired = append(p.wired, n)
	return nil
}

func (p *Pod) wireMasquerade(n *nic) error {
	if err := p.addBridge(n); err != nil {
		return err
	}
	if err := p.addTap(n); err != nil {
		return err
	}
	if err := p.Pod.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if err := p.translateAddresses(n, ipv4NAT); err != nil {
		return err
	}
	return p.masqueradeIPv6(n)
}

func (p *Pod) wireBridge(n *nic) error {
	uplink, err := p.Pod.link(n.iface)
	if err != nil {
		return err
	}
	addrs, err := p.Pod.netlink.AddrList(uplink, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	if err := p.addBridge(n); err != nil {
		return err
	}
	if err := p.renameUplink(n, uplink, addrs); err != nil {
		return err
	}
	if err := p.enslaveUplink(n); err != nil {
		return err
	}
	if err := p.addTap(n); err != nil {
		return err
	}
	if err := p.addStandIn(n, addrs); err != nil || !n.podAddr.IsValid() {
		return err
	}
	return p.Pod.Sysctl("net.ipv4.conf.all.arp_ignore", "1")
}

// addBridge makes the bridge with its addresses, without ports.
func (p *Pod) addBridge(n *nic) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.bridge
	if n.binding == Masquerade {
		attrs.MTU, attrs.HardwareAddr = n.mtu, bridgeMAC
	}
	if err := p.Pod.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	bridge, err := p.Pod.link(n.bridge)
	if err != nil {
		return err
	}
	switch n.binding {
	case Masquerade:
		err = p.Pod.assign(bridge, netip.PrefixFrom(MasqueradeGateway, 24))
	case Bridge:
		if n.podAddr.IsValid() {
			err = p.Pod.assign(bridge, n.bridgeBindingAddr())
		}
	}
	if err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetUp(bridge); err != nil {
		return err
	}
	if n.binding == Masquerade {
		return p.Pod.Sysctl("net/ipv4/conf/"+n.bridge+"/route_localnet", "1")
	}
	return nil
}

// renameUplink takes the uplink's name, addresses and MAC away from it; its MAC
// becomes the bridge's.
func (p *Pod) renameUplink(n *nic, uplink netlink.Link, addrs []netlink.Addr) error {
	bridge, err := p.Pod.link(n.bridge)
	if err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetDown(uplink); err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetName(uplink, n.bridgePort); err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetHardwareAddr(uplink, bridge.Attrs().HardwareAddr); err != nil {
		return err
	}
	for _, addr := range addrs {
		if addr.IP.To4() == nil {
			continue // the kernel has flushed IPv6 when the link went down
		}
		// Without the label: the kernel has renamed that as well.
		if err := p.Pod.netlink.AddrDel(uplink, &netlink.Addr{IPNet: addr.IPNet}); err != nil {
			return fmt.Errorf("removing %s from %s: %w", addr.IPNet, n.bridgePort, err)
		}
	}
	return nil
}

// enslaveUplink makes the renamed uplink a port of the bridge that learns
// nothing: the guest's MAC is behind the tap.
func (p *Pod) enslaveUplink(n *nic) error {
	port, err := p.Pod.link(n.bridgePort)
	if err != nil {
		return err
	}
	if err := p.Pod.joinBridge(n.bridgePort, n.bridge); err != nil {
		return err
	}
	// Both ends lose their carrier while the port is down. What is sent before
	// the kernel has acted on its return is lost.
	err = p.Neighbour.awaitCarrier(n.uplink, func() error {
		return p.Pod.awaitCarrier(n.bridgePort, func() error { return p.Pod.netlink.LinkSetUp(port) })
	})
	if err != nil {
		return err
	}
	return p.Pod.netlink.LinkSetLearning(port, false)
}

// addStandIn keeps the uplink's name, MAC and addresses in the pod, on a link
// that is down, for whoever looks for them there. A bridge without ports does as
// well where the kernel has no dummy driver.
func (p *Pod) addStandIn(n *nic, addrs []netlink.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.iface
	err := p.Pod.netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if err == unix.EOPNOTSUPP {
		err = p.Pod.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}
	if err != nil {
		return fmt.Errorf("stand-in for %s: %w", n.iface, err)
	}
	link, err := p.Pod.link(n.iface)
	if err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetHardwareAddr(link, n.podMAC); err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetMTU(link, n.mtu); err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := p.Pod.netlink.AddrAdd(link, &netlink.Addr{IPNet: addr.IPNet}); err != nil {
			return fmt.Errorf("address %s on %s: %w", addr.IPNet, n.iface, err)
		}
	}
	return nil
}

// addTap makes the guest's tap a port of the bridge.
func (p *Pod) addTap(n *nic) error {
	make := func() error { return p.Pod.Do(func() error { return makeTap(n.tap) }) }
	if p.parking != nil {
		make = func() error { return p.makePair(n) }
	}
	if err := make(); err != nil {
		return err
	}
	tap, err := p.Pod.link(n.tap)
	if err != nil {
		return err
	}
	if err := p.Pod.netlink.LinkSetMTU(tap, n.mtu); err != nil {
		return err
	}
	if err := p.Pod.joinBridge(n.tap, n.bridge); err != nil {
		return err
	}
	return p.Pod.netlink.LinkSetUp(tap)
}

// joinBridge makes a link a port of a bridge.
func (n *Namespace) joinBridge(port, bridge string) error {
	portLink, err := n.link(port)
	if err != nil {
		return err
	}
	bridgeLink, err := n.link(bridge)
	if err != nil {
		return err
	}
	if err := n.netlink.LinkSetMaster(portLink, bridgeLink); err != nil {
		return fmt.Errorf("%s as a port of %s: %w", port, bridge, err)
	}
	return nil
}

// RemoveBridge deletes the pod network's bridge, as an accident would. Its
// ports stay, without a bridge.
func (p *Pod) RemoveBridge() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Pod.remove(p.primary.bridge)
}

// RestoreBridge makes the pod network's bridge anew after [Pod.RemoveBridge],
// with the ports that virt-handler gave it.
func (p *Pod) RestoreBridge() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.primary
	if err := p.addBridge(n); err != nil {
		return err
	}
	if n.binding != Masquerade {
		if err := p.enslaveUplink(n); err != nil {
			return err
		}
	}
	return p.Pod.joinBridge(n.tap, n.bridge)
}
