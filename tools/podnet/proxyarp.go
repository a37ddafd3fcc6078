package podnet

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// elsewhere is the neighbour's interface to the rest of the world while it is a
// proxy. Nothing is there.
const elsewhere = "elsewhere"

// ProxyARP has the neighbour answer ARP on the pod's uplink for every address
// of the world, 169.254.169.254 among them, as a node does for the pods of some
// CNI plugins. The gateway's own address stays its own. undo ends it.
func (p *Pod) ProxyARP() (undo func() error, err error) {
	p.attack.Lock()
	undo = func() error {
		defer p.attack.Unlock()
		return errors.Join(
			p.Neighbour.Sysctl("net/ipv4/conf/"+NeighbourInterface+"/proxy_arp", "0"),
			p.Neighbour.Sysctl("net.ipv4.ip_forward", "0"),
			p.Neighbour.remove(elsewhere),
		)
	}
	if err := p.proxyARP(); err != nil {
		return nil, errors.Join(fmt.Errorf("proxy ARP: %w", err), undo())
	}
	return undo, nil
}

func (p *Pod) proxyARP() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = elsewhere
	// A bridge without ports, since the dummy driver is not everywhere.
	if err := p.Neighbour.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	if err := p.Neighbour.setUp(elsewhere); err != nil {
		return err
	}
	link, err := p.Neighbour.link(elsewhere)
	if err != nil {
		return err
	}
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := p.Neighbour.netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: everywhere}); err != nil {
		return err
	}
	for key, value := range map[string]string{
		"net/ipv4/ip_forward":                                "1",
		"net/ipv4/conf/" + NeighbourInterface + "/proxy_arp": "1",
		// At once, and not some time within 0.8 s.
		"net/ipv4/neigh/" + NeighbourInterface + "/proxy_delay": "0",
	} {
		if err := p.Neighbour.Sysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}
