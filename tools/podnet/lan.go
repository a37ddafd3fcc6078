package podnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// LAN is one Ethernet for the uplinks of several pods, as pods on several nodes
// share it where a VM keeps its address over a live migration. It outlives the
// pods that were attached to it.
//
//	Gateway              neighbour            pod
//	lan 10.244.1.1/24 <veth> lan ... up0 <veth> eth0
type LAN struct {
	// Gateway has the neighbours' address, and the pods' default route leads to
	// it.
	Gateway *Namespace

	ports int // so far
}

// lanBridge is the name of the bridge, in the gateway and in each neighbour.
const lanBridge = "lan"

// NewLAN makes a LAN on which there is the gateway alone.
func NewLAN() (*LAN, error) {
	gateway, err := NewNamespace("gateway")
	if err != nil {
		return nil, err
	}
	bridge, err := gateway.addLANBridge()
	if err == nil {
		err = gateway.assign(bridge, netip.PrefixFrom(NeighbourAddr, 24))
	}
	if err != nil {
		return nil, errors.Join(err, gateway.Close())
	}
	return &LAN{Gateway: gateway}, nil
}

// Attach makes the pod's neighbour a switch between the pod's uplink and the
// LAN: it has no address any more, and attacks nobody.
func (l *LAN) Attach(p *Pod) error {
	uplink, err := p.Neighbour.link(NeighbourInterface)
	if err != nil {
		return err
	}
	addresses, err := p.Neighbour.netlink.AddrList(uplink, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if err := p.Neighbour.netlink.AddrDel(uplink, &address); err != nil {
			return fmt.Errorf("removing %s from %s: %w", address, NeighbourInterface, err)
		}
	}
	if _, err := p.Neighbour.addLANBridge(); err != nil {
		return err
	}
	l.ports++
	attrs := netlink.NewLinkAttrs()
	// The reason for the index is at uplinkIndex.
	attrs.Name, attrs.MTU, attrs.Index = fmt.Sprintf("pod%d", l.ports), p.options.MTU, uplinkIndex+l.ports
	err = l.Gateway.netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      "cable",
		PeerMTU:       uint32(p.options.MTU),
		PeerNamespace: netlink.NsFd(p.Neighbour.FD()),
	})
	if err != nil {
		return fmt.Errorf("veth pair between the LAN and the pod's neighbour: %w", err)
	}
	for _, port := range []struct {
		in   *Namespace
		name string
	}{{l.Gateway, attrs.Name}, {p.Neighbour, "cable"}, {p.Neighbour, NeighbourInterface}} {
		if err := port.in.joinBridge(port.name, lanBridge); err != nil {
			return err
		}
		if err := port.in.setUp(port.name); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the LAN. Pods that are attached stay, cut off.
func (l *LAN) Close() error { return l.Gateway.Close() }

func (n *Namespace) addLANBridge() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	// With a MAC of its own it does not take a port's, which may go.
	attrs.Name, attrs.HardwareAddr = lanBridge, randomMAC()
	if err := n.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("bridge %s in %s: %w", lanBridge, n.name, err)
	}
	if err := n.setUp(lanBridge); err != nil {
		return nil, err
	}
	return n.link(lanBridge)
}
