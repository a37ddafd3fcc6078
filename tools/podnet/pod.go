// Package podnet builds, in network namespaces of its own, the network of a
// KubeVirt pod as virt-handler leaves it, with a guest behind a real tap and a
// neighbour on the uplink. Tests and the demo use it in place of a cluster.
//
// Everything is done with netlink and system calls: no ip, nft or other program
// has to be installed. It runs as root, and as an ordinary user inside a user
// namespace (see [Main] and [Rerun]).
//
//	neighbour                pod                                     guest
//	up0 10.244.1.1/24 <veth> eth0 ... k6t-eth0 ... tap0 <pumped frames> eth0
//
// The wiring follows KubeVirt 1.9, pkg/network/setup and pkg/network/driver.
package podnet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Binding is how a VM's network interface is bound to the pod's network, in the
// words of the VirtualMachineInstance's spec.
type Binding string

const (
	// Masquerade: the guest sits behind NAT, at 10.0.2.2.
	Masquerade Binding = "masquerade"
	// Bridge: the guest has taken over the pod's address and MAC.
	Bridge Binding = "bridge"
	// ManagedTap: as Bridge, but KubeVirt's DHCP server is absent, and with it
	// the bridge's own address.
	ManagedTap Binding = "managedTap"
	// Passt: no link is made. The program passt, a process like any other in the
	// pod, is the guest's network; its CNI plugin has opened it all ports.
	Passt Binding = "passt"
)

// The fixed addresses of the pod network.
var (
	// NeighbourAddr is the gateway of the pod network, and the neighbour's own
	// address.
	NeighbourAddr = netip.MustParseAddr("10.244.1.1")
	// PodAddr is the address that the CNI plugin gave to the pod.
	PodAddr = netip.MustParseAddr("10.244.1.5")
	// MasqueradeGuestAddr and MasqueradeGateway are KubeVirt's default
	// masquerade network, 10.0.2.0/24.
	MasqueradeGuestAddr = netip.MustParseAddr("10.0.2.2")
	MasqueradeGateway   = netip.MustParseAddr("10.0.2.1")
	// MetadataAddr is the address that the project serves.
	MetadataAddr = netip.MustParseAddr("169.254.169.254")
	// MetadataIPv6Addr is its IPv6 address, which is link-local.
	MetadataIPv6Addr = netip.MustParseAddr("fe80::a9fe:a9fe")
)

// NeighbourInterface is the neighbour's end of the uplink of the VM's first
// network.
const NeighbourInterface = "up0"

// BystanderInterface is the neighbour's end of a pod network that the VM has no
// part in.
const BystanderInterface = "upeth0"

// Options say how the pod's network is built. The zero value is a masquerade
// pod as a node with default sysctls makes it.
type Options struct {
	// Binding of the pod network. Empty: Masquerade.
	Binding Binding
	// Ports are the TCP ports that the VM lists, which are then the only ones
	// that masquerade lets in. Empty: all.
	Ports []uint16
	// MTU of the pod's uplink, in bytes. 0: 1500.
	MTU int
	// PrimaryInterface is the name that the CNI plugin gave to the pod's
	// uplink. Empty: eth0.
	PrimaryInterface string
	// Network is what the CNI plugin makes of that uplink. Empty: Subnet.
	Network Network
	// NoPodNetwork: the VM is on a secondary network alone. PrimaryInterface is
	// that network's, named as for [Pod.AddSecondaryBridge], with 10.245.0.5/24
	// and no default route.
	NoPodNetwork bool
	// Bystander: the pod network's eth0 is there nevertheless, as the CNI plugin
	// made it. Only with NoPodNetwork.
	Bystander bool
	// WithoutIPv6 switches IPv6 off in the pod's namespace. The guest's own
	// stays.
	WithoutIPv6 bool
	// GuestWithoutIPv4 leaves out KubeVirt's DHCP server: the guest has IPv6
	// only.
	GuestWithoutIPv4 bool
	// BridgeNetfilter sets net.bridge.bridge-nf-call-iptables and
	// -ip6tables in the pod. nil: as the kernel makes them.
	BridgeNetfilter *bool
	// RPFilter is net.ipv4.conf.{all,default}.rp_filter in the pod: 0 off, 1
	// strict, 2 loose.
	RPFilter int
	// GuestMAC is the MAC of the guest's NIC. nil: random. In Bridge and
	// ManagedTap the CNI plugin has given it to the pod, as one does that lets
	// a VM keep its MAC over a live migration.
	GuestMAC net.HardwareAddr
	// Address is the one that the CNI plugin gave to the pod, in 10.244.1.0/24.
	// Not valid: PodAddr.
	Address netip.Addr
}

// Pod is a pod's network with all that is around it. Its methods may be called
// from several goroutines.
type Pod struct {
	// Pod is the namespace of the virt-launcher pod, in which virt-handler and
	// the sidecars work.
	Pod *Namespace
	// Guest is the guest's kernel.
	Guest *Namespace
	// Neighbour is the network beyond the uplink: the node's gateway and other
	// pods.
	Neighbour *Namespace

	options Options
	primary *nic
	parking *Namespace // of the guest's ends of the veth pairs in place of taps; nil: the taps are real

	mu      sync.Mutex // guards what follows, and the pod's wiring
	wired   []*nic     // in the order of the guest's eth0, eth1, ...
	running bool       // the guest
	cables  map[*nic]*cable

	attack sync.Mutex // held by whoever has changed the neighbour's addresses, routes or ARP entries
}

// New makes the three namespaces and the pod's uplink as a CNI plugin does:
// eth0 with 10.244.1.5/24 and a default route. Nothing of KubeVirt's is there
// before [Pod.Wire].
func New(options Options) (*Pod, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	p := &Pod{options: options, cables: map[*nic]*cable{}}
	if err := p.build(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Adopt takes over the network of a pod that a real kubelet runs, with the eth0
// that its CNI plugin has made: that of a VM in masquerade binding, over IPv4
// alone. There is no neighbour. [Pod.Close] closes the namespace.
func Adopt(pod *Namespace) (*Pod, error) {
	p := &Pod{Pod: pod, options: Options{WithoutIPv6: true}, cables: map[*nic]*cable{}}
	err := p.options.complete()
	if err == nil {
		p.primary, err = primaryNIC(p.options)
	}
	if err == nil {
		p.Guest, err = NewNamespace("guest")
	}
	if err == nil {
		err = p.park()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// park makes the namespace of the guest's ends, where there are no taps.
func (p *Pod) park() (err error) {
	if !RealTaps() {
		p.parking, err = NewNamespace("parking")
	}
	return err
}

func (o *Options) complete() error {
	if o.Binding == "" {
		o.Binding = Masquerade
	}
	switch o.Binding {
	case Masquerade:
	case Bridge, ManagedTap, Passt:
		if o.Ports != nil {
			return fmt.Errorf("ports %v: only %s has a list of ports, not %s", o.Ports, Masquerade, o.Binding)
		}
	default:
		return fmt.Errorf("binding %q: use %s, %s, %s or %s", o.Binding, Masquerade, Bridge, ManagedTap, Passt)
	}
	if o.Network == "" {
		o.Network = Subnet
	}
	switch o.Network {
	case Subnet, Routed, Layer2:
	default:
		return fmt.Errorf("network %q: use %s, %s or %s", o.Network, Subnet, Routed, Layer2)
	}
	if (o.Binding == Masquerade || o.Binding == Passt) && (o.Network == Layer2 || o.NoPodNetwork) {
		return fmt.Errorf("binding %s: it is for the pod network, which has an address", o.Binding)
	}
	if o.Bystander && !o.NoPodNetwork {
		return errors.New("bystander: the VM has to be without the pod network")
	}
	if o.NoPodNetwork && o.Network == Routed {
		return fmt.Errorf("network %s: it is the pod network, which the VM is to have no part in", o.Network)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.PrimaryInterface == "" {
		o.PrimaryInterface = "eth0"
	}
	if o.GuestMAC == nil && o.Binding == Masquerade {
		o.GuestMAC = randomMAC()
	}
	if !o.Address.IsValid() {
		o.Address = PodAddr
	}
	return nil
}

func (p *Pod) build() error {
	for _, n := range []struct {
		name string
		at   **Namespace
	}{{"pod", &p.Pod}, {"guest", &p.Guest}, {"neighbour", &p.Neighbour}} {
		made, err := NewNamespace(n.name)
		if err != nil {
			return err
		}
		*n.at = made
	}
	if err := p.park(); err != nil {
		return err
	}
	for _, conf := range []string{"all", "default"} {
		if err := p.Pod.Sysctl("net.ipv4.conf."+conf+".rp_filter", fmt.Sprint(p.options.RPFilter)); err != nil {
			return err
		}
	}
	if nf := p.options.BridgeNetfilter; nf != nil {
		value := map[bool]string{false: "0", true: "1"}[*nf]
		for _, key := range []string{"iptables", "ip6tables"} {
			if err := p.Pod.Sysctl("net.bridge.bridge-nf-call-"+key, value); err != nil {
				return err
			}
		}
	}
	if p.options.WithoutIPv6 && HasIPv6() {
		if err := p.Pod.disableIPv6(); err != nil {
			return err
		}
	}
	var err error
	if p.primary, err = primaryNIC(p.options); err != nil {
		return err
	}
	if p.options.Bystander {
		if err := p.plugUplink(bystanderNIC(p.options.MTU)); err != nil {
			return err
		}
	}
	if err := p.plugUplink(p.primary); err != nil || p.options.Binding != Passt {
		return err
	}
	return p.openPorts()
}

// openPorts is what KubeVirt's CNI plugin for passt does
// (cmd/cniplugins/passt-binding): passt, with the user and the group of
// virt-launcher, may listen on every port and send pings.
func (p *Pod) openPorts() error {
	if err := p.Pod.Sysctl("net.ipv4.ip_unprivileged_port_start", "0"); err != nil {
		return err
	}
	err := p.Pod.Sysctl("net.ipv4.ping_group_range", fmt.Sprint(qemuID, " ", qemuID))
	if errors.Is(err, unix.EINVAL) {
		return nil // the group has no number in the user namespace of an ordinary user
	}
	return err
}

// Close stops the guest and removes the namespaces with all that is in them.
// Processes that were started in one of them keep it alive until they end. It
// may be called twice.
func (p *Pod) Close() error {
	errs := []error{p.StopGuest()}
	for _, n := range []*Namespace{p.Pod, p.Guest, p.Neighbour, p.parking} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	return errors.Join(errs...)
}

// nic is one of the VM's network interfaces, from the neighbour's end of the
// uplink to the guest's NIC.
type nic struct {
	number         int // among the VM's; -1: not one of them
	binding        Binding
	iface          string // as the CNI plugin named it: eth0, pod37a8eec1ce1
	uplink         string // the neighbour's end
	bridge         string // k6t-eth0
	bridgePort     string // what iface is renamed to where it becomes a port of the bridge: eth0-nic
	tap            string
	guestInterface string
	podAddr        netip.Prefix // not valid: none
	neighbourAddr  netip.Prefix
	gateway        netip.Addr // of the default route; not valid: there is none
	routed         bool       // as Calico routes: no address makes the gateway reachable
	mtu            int
	podMAC         net.HardwareAddr // the one that the CNI plugin gave; the guest's, in bridge binding
	guestMAC       net.HardwareAddr
}

// guestAddr is what KubeVirt's DHCP server gives to the guest. Not valid:
// nothing.
func (n *nic) guestAddr() netip.Prefix {
	if n.binding == Masquerade {
		return netip.PrefixFrom(MasqueradeGuestAddr, 24)
	}
	return n.podAddr
}

// guestGateway is the router that KubeVirt's DHCP server gives to the guest. Not
// valid: none.
func (n *nic) guestGateway() netip.Addr {
	if n.binding == Masquerade {
		return MasqueradeGateway
	}
	return n.gateway
}

// secondaryNIC describes a secondary network's interface. Its names are made as
// KubeVirt makes them from the CNI's "pod" + hash (pkg/network/namescheme and
// pkg/network/link).
func secondaryNIC(number int, iface string, mtu int) (*nic, error) {
	hash, ok := strings.CutPrefix(iface, "pod")
	if !ok || hash == "" || len(iface) > 14 {
		return nil, fmt.Errorf("interface %q: a secondary interface is named "+
			"pod and up to 11 characters more, such as pod37a8eec1ce1", iface)
	}
	subnet := func(host byte) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 245, byte(number), host}), 24)
	}
	return &nic{
		number:         number,
		binding:        Bridge,
		iface:          iface,
		uplink:         fmt.Sprintf("up%d", number),
		bridge:         "k6t-" + hash,
		bridgePort:     hash + "-nic",
		tap:            "tap" + hash,
		guestInterface: fmt.Sprintf("eth%d", number),
		podAddr:        subnet(5),
		neighbourAddr:  subnet(1),
		mtu:            mtu,
	}, nil
}

// randomMAC makes a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails: crypto/rand
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
