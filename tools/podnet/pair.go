package podnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// Where an ordinary user may not open /dev/net/tun, or it is missing, a veth
// pair takes the tap's place: one end has the tap's name and is the bridge's port; the
// other is the guest's NIC while a guest is running, and is parked in a
// namespace of its own, down, otherwise. To the bridge it is the same: a port
// without carrier until the guest has opened it.

// tapIndex is the interface index of the first veth pair in place of a tap: far
// from its other end's, for the reason given at uplinkIndex.
const tapIndex = 2000

// makePair is makeTap with a veth pair.
func (p *Pod) makePair(n *nic) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = n.tap, tapIndex+n.number
	pair := netlink.NewVeth(attrs)
	pair.PeerName = n.tap
	pair.PeerNamespace = netlink.NsFd(p.parking.FD())
	if err := p.Pod.netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("veth pair in place of the tap %s: %w", n.tap, err)
	}
	return nil
}

// plugPair makes the parked end the guest's NIC.
func (p *Pod) plugPair(n *nic) error {
	if err := move(p.parking, n.tap, p.Guest, n.guestInterface); err != nil {
		return err
	}
	p.cables[n] = &cable{stop: func() error {
		err := move(p.Guest, n.guestInterface, p.parking, n.tap)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil // the tap was deleted, and its other end with it
		}
		return err
	}}
	err := p.Pod.awaitCarrier(n.tap, func() error { return p.configureGuest(n) })
	if err != nil {
		return errors.Join(err, p.unplugCable(n))
	}
	return nil
}

// move takes a link from one namespace to another, where it has another name.
// It arrives down and without addresses.
func move(from *Namespace, name string, to *Namespace, newName string) error {
	link, err := from.link(name)
	if err != nil {
		return err
	}
	if err := from.netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("%s down in %s: %w", name, from.name, err)
	}
	if err := from.netlink.LinkSetName(link, newName); err != nil {
		return fmt.Errorf("%s as %s in %s: %w", name, newName, from.name, err)
	}
	if err := from.netlink.LinkSetNsFd(link, to.FD()); err != nil {
		return fmt.Errorf("%s from %s to %s: %w", newName, from.name, to.name, err)
	}
	return nil
}

// RealTaps says whether this process can make taps: whether /dev/net/tun can be
// opened. Otherwise veth pairs take the place of the guests' taps.
func RealTaps() bool {
	device, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	device.Close()
	return true
}
