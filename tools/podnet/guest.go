package podnet

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// largestFrame holds any frame a tap of MTU 65535 gives, in bytes.
const largestFrame = 1 << 16

// StartGuest does what QEMU and a guest that boots do: the pod's taps are opened,
// which gives them carrier, each is joined frame by frame with a NIC of the guest
// (eth0, eth1, ...), and eth0 gets what KubeVirt's DHCP server would give it. The
// guest of a running pod may be stopped and started again.
func (p *Pod) StartGuest() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		return errors.New("the guest is running already")
	}
	p.running = true
	for _, n := range p.wired {
		if err := p.plugCable(n); err != nil {
			return errors.Join(err, p.stopGuest())
		}
	}
	return nil
}

// StopGuest ends QEMU: the taps stay, without carrier, and the guest's NICs are
// gone. That no guest is running is no error.
func (p *Pod) StopGuest() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopGuest()
}

func (p *Pod) stopGuest() error {
	var errs []error
	for n := range p.cables {
		errs = append(errs, p.unplugCable(n))
	}
	p.running = false
	return errors.Join(errs...)
}

// UnplugTap is the first half of NIC hot-plug on the pod network: QEMU lets go
// of tap0, which takes eth0 from the guest, and virt-handler deletes it.
func (p *Pod) UnplugTap() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.unplugCable(p.primary); err != nil {
		return err
	}
	return p.Pod.remove(p.primary.tap)
}

// PlugTap is the second half: a new tap0 becomes a port of the bridge, and a
// running guest has its eth0 again.
func (p *Pod) PlugTap() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.addTap(p.primary); err != nil {
		return err
	}
	return p.plugCable(p.primary)
}

// plugCable joins a tap of the pod with a NIC of the guest, where a guest is
// running.
func (p *Pod) plugCable(n *nic) error {
	if !p.running {
		return nil
	}
	if p.parking != nil {
		return p.plugPair(n)
	}
	var podEnd, guestEnd *os.File
	err := p.Pod.awaitCarrier(n.tap, func() error {
		return p.Pod.Do(func() (err error) { podEnd, err = openTap(n.tap); return err })
	})
	if err != nil {
		if podEnd != nil {
			podEnd.Close()
		}
		return err
	}
	err = p.Guest.Do(func() (err error) { guestEnd, err = openTap(n.guestInterface); return err })
	if err != nil {
		podEnd.Close()
		return err
	}
	p.cables[n] = startCable(podEnd, guestEnd)
	if err := p.configureGuest(n); err != nil {
		return errors.Join(err, p.unplugCable(n))
	}
	return nil
}

func (p *Pod) unplugCable(n *nic) error {
	c := p.cables[n]
	if c == nil {
		return nil
	}
	delete(p.cables, n)
	return c.stop()
}

// configureGuest is the guest's DHCP client.
func (p *Pod) configureGuest(n *nic) error {
	if err := p.configureNIC(n); err != nil {
		return fmt.Errorf("configuring the guest's %s: %w", n.guestInterface, err)
	}
	return nil
}

func (p *Pod) configureNIC(n *nic) error {
	link, err := p.Guest.link(n.guestInterface)
	if err != nil {
		return err
	}
	if err := p.Guest.netlink.LinkSetHardwareAddr(link, n.guestMAC); err != nil {
		return fmt.Errorf("MAC %s: %w", n.guestMAC, err)
	}
	if err := p.Guest.netlink.LinkSetMTU(link, n.mtu); err != nil {
		return err
	}
	if err := p.Guest.setUpWithLinkLocal(link, n.guestMAC); err != nil {
		return err
	}
	if err := p.configureNICIPv6(n, link); err != nil {
		return err
	}
	if p.options.GuestWithoutIPv4 || !n.guestAddr().IsValid() {
		return nil
	}
	if err := p.Guest.assign(link, n.guestAddr()); err != nil {
		return err
	}
	return p.Guest.giveRouter(link, n.routed && n.binding != Masquerade, n.guestGateway())
}

// cable joins a tap of the pod with a NIC of the guest until it is stopped.
type cable struct {
	stop func() error
}

// startCable carries frames between two taps, each way as soon as there is one.
func startCable(a, b *os.File) *cable {
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(a, b) })
	pumps.Go(func() { pump(b, a) })
	return &cable{stop: func() error {
		err := errors.Join(a.Close(), b.Close())
		pumps.Wait()
		return err
	}}
}

// pump ends when its source is closed, or its device deleted. A frame that the
// other end does not take is lost, as on any wire.
func pump(from, to *os.File) {
	frame := make([]byte, largestFrame)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		to.Write(frame[:n])
	}
}
