package podnet

import (
	"errors"
	"fmt"
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
	err = p.leadTo(elsewhere)
	if err == nil {
		err = p.answerForAll(NeighbourInterface)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("proxy ARP: %w", err), undo())
	}
	return undo, nil
}
