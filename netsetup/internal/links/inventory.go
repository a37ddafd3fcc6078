// Package links makes the endpoint's veth pair and joins it to the VM's bridge, over
// netlink, with no capability but NET_ADMIN. Its functions act in the network
// namespace of the calling thread. Each reads before it writes: where all is as it
// should be, nothing is written, and so no event is caused.
package links

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// Inventory is what links there were at one moment.
type Inventory []netlink.Link

// most is how many links are read: the pod of no VM has as many, and whoever makes
// more takes no memory.
const most = 512

// List reads the links. The error
// wraps netlink.ErrDumpInterrupted when they changed meanwhile.
func List() (all Inventory, err error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	dumpErr := request.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, func(message []byte) bool {
		if len(all) == most {
			err = fmt.Errorf("more than %d links, which the pod of no VM has; delete them", most)
			return false
		}
		link, parseErr := netlink.LinkDeserialize(nil, message)
		all, err = append(all, link), parseErr
		return err == nil
	})
	if err == nil {
		err = dumpErr
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

// Links describes the inventory to the wiring's decisions.
func (inv Inventory) Links() []wiring.Link {
	described := make([]wiring.Link, 0, len(inv))
	for _, link := range inv {
		attrs := link.Attrs()
		described = append(described, wiring.Link{
			Index: attrs.Index, Name: attrs.Name, Kind: kind(link), Master: attrs.MasterIndex, MTU: attrs.MTU,
		})
	}
	return described
}

// kind is the kernel's word (IFLA_INFO_KIND), where the netlink package has
// one of its own: taps are "tun" and hardware has none.
func kind(link netlink.Link) string {
	switch link.Type() {
	case "tuntap":
		return "tun"
	case "device":
		return ""
	}
	return link.Type()
}

// Equal says whether two inventories are the same as far as this package looks
// at them.
func (inv Inventory) Equal(other Inventory) bool {
	return slices.EqualFunc(inv, other, func(a, b netlink.Link) bool {
		x, y := a.Attrs(), b.Attrs()
		return x.Index == y.Index && x.Name == y.Name && x.Flags == y.Flags && x.MasterIndex == y.MasterIndex && x.MTU == y.MTU
	})
}

// Index is the interface index of a link, 0 where it is not there.
func (inv Inventory) Index(name string) int {
	if link := inv.named(name); link != nil {
		return link.Attrs().Index
	}
	return 0
}

func (inv Inventory) named(name string) netlink.Link {
	for _, link := range inv {
		if link.Attrs().Name == name {
			return link
		}
	}
	return nil
}

// find is named for a link that has to be there.
func (inv Inventory) find(name string) (netlink.Link, error) {
	if link := inv.named(name); link != nil {
		return link, nil
	}
	return nil, fmt.Errorf("link %s: %w", name, unix.ENODEV)
}
