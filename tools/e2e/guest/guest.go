// Package guest plays, in a pod that a kubelet runs, the parts that KubeVirt and QEMU have in a VM's network:
// virt-handler, which wires the pod, and the guest behind the tap.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/e2e/netns"
)

// Guest is a running guest: a network of its own that has nothing but eth0, whose other end is the pod's tap.
type Guest struct {
	network *netns.Namespace
	ends    [2]*os.File // of the cable: the pod's tap and the guest's NIC
	pumps   sync.WaitGroup
}

// Boot opens the tap of a pod that Wire has wired, which gives it carrier, and gives the guest what KubeVirt's
// DHCP server would.
func Boot(pod *netns.Namespace) (*Guest, error) {
	g := new(Guest)
	if err := g.boot(pod); err != nil {
		return nil, errors.Join(fmt.Errorf("boot guest: %w", err), g.Stop())
	}
	return g, nil
}

func (g *Guest) boot(pod *netns.Namespace) (err error) {
	if g.network, err = netns.New(); err != nil {
		return err
	}
	if err := pod.Do(func() (err error) { g.ends[0], err = openTap(tapName); return err }); err != nil {
		return err
	}
	if err := g.network.Do(func() (err error) { g.ends[1], err = openTap("eth0"); return err }); err != nil {
		return err
	}
	g.pumps.Go(func() { pump(g.ends[0], g.ends[1]) })
	g.pumps.Go(func() { pump(g.ends[1], g.ends[0]) })
	return g.network.Do(configure)
}

// configure is the guest's DHCP client.
func configure() error {
	nic, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(nic, guestMAC); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return err
	}
	address, err := netlink.ParseAddr(guestAddress)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(nic, address); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)})
}

// DialContext connects from the guest to an IP address.
func (g *Guest) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return g.network.DialContext(ctx, network, address)
}

// Stop ends the guest as a power-off does. The pod's tap stays, without a carrier.
func (g *Guest) Stop() error {
	var failed []error
	for _, end := range g.ends {
		if end != nil {
			failed = append(failed, end.Close())
		}
	}
	g.pumps.Wait()
	if g.network != nil {
		failed = append(failed, g.network.Close())
	}
	return errors.Join(failed...)
}

// pump carries frames one way until its source is closed. One that the other end does not take is lost, as on
// any wire.
func pump(from, to *os.File) {
	frame := make([]byte, 1<<16)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		to.Write(frame[:n])
	}
}
