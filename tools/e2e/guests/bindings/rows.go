package bindings

import (
	"net/netip"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// row is a VM, and what its guest's administrator has done.
type row struct {
	subject string
	// network is the pod's, before KubeVirt comes.
	network podnet.Options
	// second is the pod's interface of a second network, in bridge binding. Empty: there is none.
	second string
	// bridgeName is the VM's annotation. Empty: there is none.
	bridgeName string
	// nic is the guest's way to everywhere. Empty: eth0.
	nic string
	// configure are the guest's commands where it does not ask for its addresses by DHCP.
	configure string
	// onLink are the addresses that an on-link route makes the guest look for by ARP. Empty: 169.254.0.0/16, as some
	// distributions have it.
	onLink string

	// neighbour is the address at which the guest reaches the neighbour, and guest the one at which the neighbour
	// sees and reaches the guest. Not valid: those of the pod network.
	neighbour, guest netip.Addr
	// neighbourLink is an address that the neighbour needs on its uplink to be reached. Not valid: none.
	neighbourLink netip.Prefix
	// passt: the VM's pod network is bound by passt, instead of what network says.
	passt bool
	// withoutIPv4: the guest has IPv6 alone.
	withoutIPv4 bool
	// withoutNetfilter: the node's kernel has no nf_tables, and the guest is not served.
	withoutNetfilter bool
	// compared: the guest's network is measured, too.
	compared bool
	// unlisted are ports of the VM that its binding does not let the neighbour reach.
	unlisted []uint16
}

// secondary is the name that KubeVirt has Multus give to a secondary network's interface, and secondaryBridge the
// name of the bridge that KubeVirt makes for it.
const (
	secondary       = "pod37a8eec1ce1"
	secondaryBridge = "k6t-37a8eec1ce1"
)

// address is how an administrator configures the guest's NIC by hand.
func address(nic, own, router string) string {
	script := "ip link set " + nic + " up && ip addr add " + own + " dev " + nic
	if router != "" {
		script += " && ip route add default via " + router + " dev " + nic
	}
	return script
}

// The pods of VMs that are on a secondary network alone, which gives the pod no address.
var (
	layer2 = podnet.Options{
		Binding: podnet.Bridge, Network: podnet.Layer2, NoPodNetwork: true, PrimaryInterface: secondary,
	}
	layer2BesidePodNetwork = podnet.Options{
		Binding: podnet.Bridge, Network: podnet.Layer2, NoPodNetwork: true, Bystander: true, PrimaryInterface: secondary,
	}
)

var on, off = true, false

var rows = []row{
	{subject: "masquerade", network: podnet.Options{Binding: podnet.Masquerade}, compared: true},
	{
		subject:  "masquerade, ports",
		network:  podnet.Options{Binding: podnet.Masquerade, Ports: []uint16{22, 8080}},
		unlisted: []uint16{80},
	},
	{subject: "bridge", network: podnet.Options{Binding: podnet.Bridge}, compared: true},
	{
		subject:   "managed tap",
		network:   podnet.Options{Binding: podnet.ManagedTap},
		configure: address("eth0", "10.244.1.5/24", "10.244.1.1"),
	},
	{
		subject:   "layer 2 alone",
		network:   layer2,
		configure: address("eth0", "10.245.0.77/24", "10.245.0.1"),
		neighbour: netip.MustParseAddr("10.245.0.1"),
		guest:     netip.MustParseAddr("10.245.0.77"),
	},
	{
		subject:   "layer 2, pod network beside",
		network:   layer2BesidePodNetwork,
		configure: address("eth0", "10.245.0.77/24", "10.245.0.1"),
		neighbour: netip.MustParseAddr("10.245.0.1"),
		guest:     netip.MustParseAddr("10.245.0.77"),
	},
	{
		subject:       "link-local, no default route",
		network:       layer2,
		configure:     address("eth0", "169.254.7.7/16", ""),
		onLink:        "169.254.169.254/32",
		neighbour:     netip.MustParseAddr("169.254.8.8"),
		neighbourLink: netip.MustParsePrefix("169.254.8.8/16"),
		guest:         netip.MustParseAddr("169.254.7.7"),
	},
	{
		subject: "two bridges",
		network: podnet.Options{Binding: podnet.Masquerade},
		second:  secondary,
	},
	{
		subject:    "two bridges, the second named",
		network:    podnet.Options{Binding: podnet.Masquerade},
		second:     secondary,
		bridgeName: secondaryBridge,
		nic:        "eth1",
		configure:  address("eth1", "10.245.1.5/24", "10.245.1.1"),
		neighbour:  netip.MustParseAddr("10.245.1.1"),
		guest:      netip.MustParseAddr("10.245.1.5"),
	},
	{subject: "Calico, masquerade", network: podnet.Options{Binding: podnet.Masquerade, Network: podnet.Routed}},
	{subject: "Calico, bridge", network: podnet.Options{Binding: podnet.Bridge, Network: podnet.Routed}},
	{subject: "ovn-udn1, masquerade", network: podnet.Options{Binding: podnet.Masquerade, PrimaryInterface: "ovn-udn1"}},
	{subject: "ovn-udn1, bridge", network: podnet.Options{Binding: podnet.Bridge, PrimaryInterface: "ovn-udn1"}},
	{subject: "MTU 1400, masquerade", network: podnet.Options{Binding: podnet.Masquerade, MTU: 1400}},
	{subject: "MTU 1400, bridge", network: podnet.Options{Binding: podnet.Bridge, MTU: 1400}},
	{subject: "MTU 9000, masquerade", network: podnet.Options{Binding: podnet.Masquerade, MTU: 9000}},
	{subject: "MTU 9000, bridge", network: podnet.Options{Binding: podnet.Bridge, MTU: 9000}},
	{subject: "bridge-nf-call 0, masquerade", network: podnet.Options{Binding: podnet.Masquerade, BridgeNetfilter: &off}},
	{subject: "bridge-nf-call 0, bridge", network: podnet.Options{Binding: podnet.Bridge, BridgeNetfilter: &off}},
	{subject: "bridge-nf-call 1, masquerade", network: podnet.Options{Binding: podnet.Masquerade, BridgeNetfilter: &on}},
	{subject: "bridge-nf-call 1, bridge", network: podnet.Options{Binding: podnet.Bridge, BridgeNetfilter: &on}},
	{subject: "rp_filter 1, masquerade", network: podnet.Options{Binding: podnet.Masquerade, RPFilter: 1}},
	{subject: "rp_filter 1, bridge", network: podnet.Options{Binding: podnet.Bridge, RPFilter: 1}},
	{subject: "rp_filter 2, masquerade", network: podnet.Options{Binding: podnet.Masquerade, RPFilter: 2}},
	{subject: "rp_filter 2, bridge", network: podnet.Options{Binding: podnet.Bridge, RPFilter: 2}},
	// To passt's guest the gateway's address is the pod itself, so that the neighbour has another.
	{
		subject:       "passt",
		passt:         true,
		neighbour:     netip.MustParseAddr("10.244.1.9"),
		neighbourLink: netip.MustParsePrefix("10.244.1.9/24"),
	},
	{subject: "passt, Calico", network: podnet.Options{Network: podnet.Routed}, passt: true},
	{subject: "pod without IPv6, masquerade", network: podnet.Options{Binding: podnet.Masquerade, WithoutIPv6: true}},
	{subject: "pod without IPv6, bridge", network: podnet.Options{Binding: podnet.Bridge, WithoutIPv6: true}},
	{
		subject:     "guest without IPv4, masquerade",
		network:     podnet.Options{Binding: podnet.Masquerade},
		withoutIPv4: true,
		configure:   address("eth0", "fd10:0:2::2/120", "fd10:0:2::1"),
	},
	{subject: "guest without IPv4, bridge", network: podnet.Options{Binding: podnet.Bridge}, withoutIPv4: true, configure: "ip link set eth0 up"},
	{subject: "guest without IPv4, layer 2", network: layer2, withoutIPv4: true, configure: "ip link set eth0 up"},
	{subject: "no nf_tables, masquerade", network: podnet.Options{Binding: podnet.Masquerade}, withoutNetfilter: true},
	{subject: "no nf_tables, bridge", network: podnet.Options{Binding: podnet.Bridge}, withoutNetfilter: true},
}

// complete gives what a row does not say its usual value.
func (r row) complete() row {
	if r.nic == "" {
		r.nic = "eth0"
	}
	if r.onLink == "" {
		r.onLink = "169.254.0.0/16"
	}
	if !r.neighbour.IsValid() {
		r.neighbour = podnet.NeighbourAddr
	}
	if !r.guest.IsValid() {
		r.guest = podnet.PodAddr
	}
	if r.network.MTU == 0 {
		r.network.MTU = 1500
	}
	return r
}

// options of the row's VM.
func (r row) options() stage.Options {
	o := stage.Options{Name: vmName, Network: r.network, WithoutNetfilter: r.withoutNetfilter}
	if r.bridgeName != "" {
		o.Init = []string{"IMDS_BRIDGE_NAME=" + r.bridgeName}
	}
	if r.passt {
		o.Init, o.Server = redirection, redirection
	}
	return o
}
