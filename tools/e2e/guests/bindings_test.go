package guests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Each row is a VM with one guest, which boots once. Its checks are done in their order.
func TestBindings(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(string(way), func(t *testing.T) {
			for _, r := range bindings {
				if way == vmtest.BySidecar || r.bothWays {
					t.Run(r.name, func(t *testing.T) { r.test(t, way) })
				}
			}
		})
	}
}

func (r binding) test(t *testing.T, way vmtest.WiredBy) {
	t.Parallel()
	b := &bindingTest{binding: r.complete()}
	if !results.Skipping() {
		useProcessors(t, 1)
		b.boot(t, way)
	}
	subject := groupIn(way, "bindings") + "/" + r.name
	for _, c := range b.checks() {
		results.Check(t, subject, c.name, c.proves, func(t *testing.T) {
			b.In(t)
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(b.Describe())
				}
			})
			c.run(t)
		})
	}
	results.Check(t, subject, "uplink",
		"no frame of the project's is on the pod's uplinks, from before the wiring to the end; frames captured",
		func(t *testing.T) {
			b.In(t).End()
			results.Figure(t, "%d frames", b.Frames)
		})
}

// binding is a VM, and what its guest's administrator has done.
type binding struct {
	name string
	// bothWays: it depends on what a pod says to the node agent, or on what is read of the pod's network namespace.
	bothWays bool
	// network is the pod's, before KubeVirt comes.
	network podnet.Options
	// second is the pod's interface of a second network, in bridge binding. Empty: there is none.
	second string
	// bridgeName is the VM's annotation. Empty: there is none.
	bridgeName string
	// named: the VM's owner has named the pod network.
	named bool
	// preferred is the bridge of the webhook's verdict. Empty: there is none.
	preferred string
	// nic is the guest's way to everywhere. Empty: eth0.
	nic string
	// led: that NIC is on another bridge than the one that is joined.
	led bool
	// sidecar: another container has a port of the joined bridge.
	sidecar bool
	// configure are the guest's commands where it does not ask for its addresses by DHCP.
	configure string
	// shows is what the guest shows of its network when it has been configured.
	shows []string
	// onLink are the addresses that an on-link route makes the guest look for by ARP. Empty: 169.254.0.0/16, as some
	// distributions have it.
	onLink string

	// neighbour is the address at which the guest reaches the neighbour, and guest the one at which the neighbour
	// sees and reaches the guest. Not valid: those of the pod network.
	neighbour, guest netip.Addr
	// neighbourLink is an address that the neighbour needs on its uplink to be reached. Not valid: none.
	neighbourLink netip.Prefix
	// withoutIPv4: the guest has IPv6 alone.
	withoutIPv4 bool
	// withoutNetfilter: the node's kernel has no nf_tables, and the guest is not served.
	withoutNetfilter bool
	// compared: the guest's network is measured, too.
	compared bool
	// unlisted are ports of the VM that its binding does not let the neighbour reach.
	unlisted []uint16
}

// bridgeGuestMAC is the MAC that a pod's interface has, which its guest has to take over.
var bridgeGuestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x58}

// secondary is the name that KubeVirt has Multus give to a secondary network's interface, and secondaryBridge the
// name of the bridge that KubeVirt makes for it.
const (
	secondary       = "pod37a8eec1ce1"
	secondaryBridge = "k6t-37a8eec1ce1"
)

// staticAddress is how an administrator configures the guest's NIC by guestagent.
func staticAddress(nic, own, router string) string {
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

var bindings = []binding{
	{
		name: "masquerade", bothWays: true,
		network:  podnet.Options{Binding: podnet.Masquerade},
		shows:    []string{"default via 10.0.2.1 dev eth0"},
		compared: true,
	},
	{
		name:     "masquerade, ports",
		network:  podnet.Options{Binding: podnet.Masquerade, Ports: []uint16{22, 8080}},
		unlisted: []uint16{80},
	},
	{name: "bridge", bothWays: true, network: podnet.Options{Binding: podnet.Bridge}, compared: true},
	{
		name:      "managed tap",
		network:   podnet.Options{Binding: podnet.ManagedTap},
		configure: staticAddress("eth0", "10.244.1.5/24", "10.244.1.1"),
	},
	{
		name: "layer 2 alone", bothWays: true,
		network:   layer2,
		configure: staticAddress("eth0", "10.245.0.77/24", "10.245.0.1"),
		neighbour: netip.MustParseAddr("10.245.0.1"),
		guest:     netip.MustParseAddr("10.245.0.77"),
	},
	{
		name:      "layer 2, pod network beside",
		network:   layer2BesidePodNetwork,
		configure: staticAddress("eth0", "10.245.0.77/24", "10.245.0.1"),
		neighbour: netip.MustParseAddr("10.245.0.1"),
		guest:     netip.MustParseAddr("10.245.0.77"),
	},
	{
		name:          "link-local, no default route",
		network:       layer2,
		configure:     staticAddress("eth0", "169.254.7.7/16", ""),
		onLink:        "169.254.169.254/32",
		neighbour:     netip.MustParseAddr("169.254.8.8"),
		neighbourLink: netip.MustParsePrefix("169.254.8.8/16"),
		guest:         netip.MustParseAddr("169.254.7.7"),
	},
	{
		name:    "two bridges",
		network: podnet.Options{Binding: podnet.Masquerade},
		second:  secondary,
	},
	{
		name: "two bridges, the first named", bothWays: true,
		network: podnet.Options{Binding: podnet.Masquerade},
		second:  secondary,
		named:   true,
	},
	{
		name: "two bridges, the second named", bothWays: true,
		network:    podnet.Options{Binding: podnet.Masquerade},
		second:     secondary,
		bridgeName: secondaryBridge,
		nic:        "eth1",
		configure:  staticAddress("eth1", "10.245.1.5/24", "10.245.1.1"),
		neighbour:  netip.MustParseAddr("10.245.1.1"),
		guest:      netip.MustParseAddr("10.245.1.5"),
	},
	{
		name: "two bridges, default route by the second", bothWays: true,
		network:   podnet.Options{Binding: podnet.Masquerade},
		second:    secondary,
		nic:       "eth1",
		led:       true,
		configure: staticAddress("eth1", "10.245.1.5/24", "10.245.1.1"),
		neighbour: netip.MustParseAddr("10.245.1.1"),
		guest:     netip.MustParseAddr("10.245.1.5"),
	},
	{
		name: "two secondary networks, the verdict's", bothWays: true,
		network:   layer2,
		second:    "pod16477688c0e", // whose bridge is the first by name
		preferred: secondaryBridge,
		configure: staticAddress("eth0", "10.245.0.77/24", "10.245.0.1"),
		neighbour: netip.MustParseAddr("10.245.0.1"),
		guest:     netip.MustParseAddr("10.245.0.77"),
	},
	{name: "bridge, another sidecar's port", network: podnet.Options{Binding: podnet.Bridge}, sidecar: true},
	{name: "Calico, masquerade", network: podnet.Options{Binding: podnet.Masquerade, Network: podnet.Routed}},
	{name: "Calico, bridge", network: podnet.Options{Binding: podnet.Bridge, Network: podnet.Routed}},
	{name: "ovn-udn1, masquerade", network: podnet.Options{Binding: podnet.Masquerade, PrimaryInterface: "ovn-udn1"}},
	{name: "ovn-udn1, bridge", network: podnet.Options{Binding: podnet.Bridge, PrimaryInterface: "ovn-udn1"}},
	{name: "MTU 1400, masquerade", network: podnet.Options{Binding: podnet.Masquerade, MTU: 1400}},
	{
		name: "MTU 1400, bridge", bothWays: true,
		network: podnet.Options{Binding: podnet.Bridge, MTU: 1400, GuestMAC: bridgeGuestMAC},
		shows:   []string{bridgeGuestMAC.String(), "mtu 1400", "10.244.1.5/24", "default via 10.244.1.1"},
	},
	{name: "MTU 9000, masquerade", network: podnet.Options{Binding: podnet.Masquerade, MTU: 9000}},
	{name: "MTU 9000, bridge", network: podnet.Options{Binding: podnet.Bridge, MTU: 9000}},
	{name: "bridge-nf-call 0, masquerade", network: podnet.Options{Binding: podnet.Masquerade, BridgeNetfilter: new(false)}},
	{name: "bridge-nf-call 0, bridge", network: podnet.Options{Binding: podnet.Bridge, BridgeNetfilter: new(false)}},
	{name: "bridge-nf-call 1, masquerade", network: podnet.Options{Binding: podnet.Masquerade, BridgeNetfilter: new(true)}},
	{name: "bridge-nf-call 1, bridge", bothWays: true, network: podnet.Options{Binding: podnet.Bridge, BridgeNetfilter: new(true)}},
	{name: "rp_filter 1, masquerade", bothWays: true, network: podnet.Options{Binding: podnet.Masquerade, RPFilter: 1}},
	{name: "rp_filter 1, bridge", network: podnet.Options{Binding: podnet.Bridge, RPFilter: 1}},
	{name: "rp_filter 2, masquerade", network: podnet.Options{Binding: podnet.Masquerade, RPFilter: 2}},
	{name: "rp_filter 2, bridge", network: podnet.Options{Binding: podnet.Bridge, RPFilter: 2}},
	// To passt's guest the gateway's address is the pod itself, so that the neighbour has another.
	{
		name: "passt", bothWays: true,
		network:       podnet.Options{Binding: podnet.Passt},
		neighbour:     netip.MustParseAddr("10.244.1.9"),
		neighbourLink: netip.MustParsePrefix("10.244.1.9/24"),
	},
	{name: "passt, Calico", network: podnet.Options{Binding: podnet.Passt, Network: podnet.Routed}},
	{name: "pod without IPv6, masquerade", network: podnet.Options{Binding: podnet.Masquerade, WithoutIPv6: true}},
	{name: "pod without IPv6, bridge", bothWays: true, network: podnet.Options{Binding: podnet.Bridge, WithoutIPv6: true}},
	{
		name:        "guest without IPv4, masquerade",
		network:     podnet.Options{Binding: podnet.Masquerade},
		withoutIPv4: true,
		configure:   staticAddress("eth0", "fd10:0:2::2/120", "fd10:0:2::1"),
	},
	{name: "guest without IPv4, bridge", network: podnet.Options{Binding: podnet.Bridge}, withoutIPv4: true, configure: "ip link set eth0 up"},
	{name: "guest without IPv4, layer 2", bothWays: true, network: layer2, withoutIPv4: true, configure: "ip link set eth0 up"},
	{name: "no nf_tables, masquerade", network: podnet.Options{Binding: podnet.Masquerade}, withoutNetfilter: true},
	{name: "no nf_tables, bridge", bothWays: true, network: podnet.Options{Binding: podnet.Bridge}, withoutNetfilter: true},
}

// complete gives what it does not say its usual value.
func (r binding) complete() binding {
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

// passt says whether the guest is the guest of passt, and not on a bridge.
func (r binding) passt() bool { return r.network.Binding == podnet.Passt }

// options of its VM.
func (r binding) options(way vmtest.WiredBy) vmtest.Options {
	o := vmtest.Options{WiredBy: way, Name: vmName, Network: r.network, WithoutNetfilter: r.withoutNetfilter}
	if r.bridgeName != "" {
		o.Init = []string{"IMDS_BRIDGE_NAME=" + r.bridgeName}
	}
	if r.named {
		o.Init = []string{"IMDS_NETWORK=default"}
	}
	if r.preferred != "" {
		o.Init = []string{"IMDS_PREFERRED_BRIDGE=" + r.preferred}
	}
	if r.passt() {
		o.Init, o.Server = redirection, redirection
	}
	return o
}

// vmName is that of each row's VM.
const vmName = "web"

// bindingTest is a binding's VM, with its guest running.
type bindingTest struct {
	binding
	*vmtest.VM
	token  string // the present one
	routes string // the guest's, and its addresses, before anything was asked
}

type bindingCheck struct {
	name, proves string
	run          func(*testing.T)
}

// checks are what is proved of the guest, in this order.
func (b *bindingTest) checks() []bindingCheck {
	served := []bindingCheck{
		{"served", "the guest gets its token by the way that its routes are; first answer", b.served},
		{"identity", "and its identity", b.identity},
	}
	// passt itself is silent about other ports of an address that is local in the pod.
	if !b.withoutIPv4 && !b.passt() && !b.led {
		served = append(served, bindingCheck{"refused", "what is not TCP port 80 is refused at once, and reaches no listener of the pod; the slowest", b.refused})
	}
	if !b.withoutIPv4 && !b.led {
		served = append(served, bindingCheck{"on-link", "also with a route by which it looks for the address on its own network; first answer", b.onLinkServed})
	}
	if !b.withoutIPv4 && !b.network.WithoutIPv6 && !b.passt() && !b.led {
		served = append(served, bindingCheck{"IPv6", "also at fe80::a9fe:a9fe; first answer", b.servedByIPv6})
	}
	served = append(served,
		bindingCheck{"large", "an answer larger than several packets arrives whole", b.large},
		bindingCheck{"neighbour", "a neighbour that asks gets no answer, whichever MAC it sends to; ways tried", b.neighbourAsks},
		bindingCheck{"impostor", "while a neighbour claims the address, the guest still gets its token; true answers", b.impostor},
	)
	if b.withoutNetfilter {
		served = []bindingCheck{{"closed", "on a kernel without nf_tables nobody is served, and imds-init says why, once; what the guest sees", b.closed}}
	}
	all := append(served,
		bindingCheck{"own-network", "guest and neighbour reach each other, the VM's own port 80 too, as the binding has it; round trip", b.ownNetwork},
	)
	if !b.sidecar { // whose port the pod without the project has not
		all = append(all, bindingCheck{"unchanged", "the guest's routes, and the pod's routes, addresses and links, are those that are there without the project", b.unchanged})
	}
	if b.named {
		all = append(all, bindingCheck{"elsewhere", "the second network may have 169.254.169.254 itself: the guest that looks for it there finds it", b.elsewhere})
	}
	if b.sidecar {
		all = append(all, bindingCheck{"sidecar", "another container's port of the bridge keeps its network; round trip", b.sidecarPort})
	}
	if b.compared {
		all = append(all, bindingCheck{"narrow", "with an MTU that IPv6 cannot be with, IPv4 is served; and both with the old one again", b.narrow})
		all = append(all, bindingCheck{"throughput", "the guest fetches from the neighbour as fast as without the project; ratio", b.throughput})
	}
	return all
}

// boot makes the VM and boots its guest.
func (b *bindingTest) boot(t *testing.T, way vmtest.WiredBy) {
	b.VM = env.New(t, b.options(way))
	if b.withoutNetfilter {
		b.Expected = isGuestsOwn
	}
	if b.network.Bystander {
		b.Watch(podnet.BystanderInterface)
	}
	b.StartSidecars()
	if b.passt() {
		b.startPasst(t)
	} else {
		b.Wire()
	}
	if b.second != "" {
		b.AddSecondary(b.second)
		// On the second network the guest may look for the address as it likes.
		b.Expected = func(f podnet.Frame) bool { return isPodsError(f) || isGuestsOwn(f) && etherType(f) == unix.ETH_P_ARP }
	}
	if b.sidecar {
		b.addSidecarPort(t)
	}
	if b.neighbourLink.IsValid() {
		b.addToNeighbour(t, b.neighbourLink)
	}
	b.Boot()
	if b.configure == "" {
		b.Configure(b.nic)
	} else {
		b.Shell(b.configure)
	}
	if b.withoutIPv4 {
		b.awaitIPv6()
	}
	b.token = b.RotateToken()
	b.routes = b.guestRoutes()
}

func (b *bindingTest) addToNeighbour(t *testing.T, address netip.Prefix) {
	up, err := b.Net.Neighbour.Netlink().LinkByName(podnet.NeighbourInterface)
	check(t, err)
	parsed, err := netlink.ParseAddr(address.String())
	check(t, err)
	check(t, b.Net.Neighbour.Netlink().AddrAdd(up, parsed))
}

// guestRoutes are the guest's routes and addresses. Those of IPv6 come by themselves, some time after the boot.
func (b *bindingTest) guestRoutes() string { return b.Shell("ip -4 route; ip -4 -o addr") }

// url is where the guest asks.
func (b *bindingTest) url() string {
	if b.withoutIPv4 {
		return b.urlOfIPv6()
	}
	return vmtest.MetadataURL
}

// get asks from inside the guest for a path.
func (b *bindingTest) get(path string) guestagent.Got { return b.GetURL(b.url() + path) }

// forgetNeighbours has the guest ask for every MAC again.
func (b *bindingTest) forgetNeighbours() { b.Shell("ip neigh flush dev " + b.nic) }

// served is the first question after the boot, and then one with the tool that any guest has.
func (b *bindingTest) served(t *testing.T) {
	got := b.get("/v1/token")
	requireToken(t, got, b.token)
	results.Figure(t, "%s", milliseconds(got.Took))
	// busybox wget has a zone as people write it, not as URLs do.
	fetched := b.Shell("wget -q -O - " + strings.ReplaceAll(b.url(), "%25", "%") + "/v1/token")
	if tokenIn(fetched) != b.token {
		t.Errorf("wget got another token than the volume's: %s", fetched)
	}
	check(t, b.Server.Probe(t.Context(), "-live"))
	shown := b.Shell("ip addr show dev " + b.nic + "; ip route")
	for _, want := range b.shows {
		if !strings.Contains(shown, want) {
			t.Errorf("the guest's network is not what DHCP gave it, with %q, but %s", want, shown)
		}
	}
}

// refused asks for what is not ours while other containers of the pod listen everywhere.
func (b *bindingTest) refused(t *testing.T) {
	const port, atOnce = 9000, 500 * time.Millisecond
	listener, err := b.Net.Pod.Listen(t.Context(), "tcp", fmt.Sprint(":", port))
	check(t, err)
	defer listener.Close()
	reached := make(chan net.Addr, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			reached <- conn.RemoteAddr()
			conn.Close()
		}
	}()
	var slowest time.Duration
	for _, port := range []int{port, port + 1} {
		got := b.GetURL(fmt.Sprintf("%s:%d/", vmtest.MetadataURL, port))
		if got.Failure != guestagent.Refused || got.Took > atOnce {
			t.Errorf("port %d: %s %d after %s, want refused within %s", port, got.Failure, got.Status, got.Took, atOnce)
		}
		slowest = max(slowest, got.Took)
	}
	select {
	case from := <-reached:
		t.Errorf("%s reached a listener of the pod", from)
	default:
	}
	results.Figure(t, "%s", milliseconds(slowest))
}

// elsewhere has the neighbour on the second network have the address.
func (b *bindingTest) elsewhere(t *testing.T) {
	const body = "the second network's own"
	up, err := b.Net.Neighbour.Netlink().LinkByName("up1")
	check(t, err)
	address, err := netlink.ParseAddr(podnet.MetadataAddr.String() + "/32")
	check(t, err)
	check(t, b.Net.Neighbour.Netlink().AddrAdd(up, address))
	defer func() { check(t, b.Net.Neighbour.Netlink().AddrDel(up, address)) }()
	listener, err := b.Net.Neighbour.Listen(t.Context(), "tcp", podnet.MetadataAddr.String()+":80")
	check(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })}
	go server.Serve(listener)
	defer server.Close()
	b.Expected = func(podnet.Frame) bool { return true } // the address is that network's from here on
	b.Shell("ip link set eth1 up; ip addr add 10.245.1.5/24 dev eth1; ip route add 169.254.169.254/32 dev eth1 src 10.245.1.5")
	defer b.Shell("ip addr flush dev eth1; ip link set eth1 down")
	if got := b.get("/"); got.Body != body {
		t.Errorf("the guest gets %q, %s", got.Body, got.Failure)
	}
}

func (b *bindingTest) narrow(t *testing.T) {
	resize := func(mtu int, says string) {
		position := len(b.Init.Log())
		for _, port := range []string{b.Net.Tap(), "eth0-nic"} { // which masquerade has not
			b.InPod(fmt.Sprintf("ip link set %s mtu %d", port, mtu))
		}
		check(t, b.Init.AwaitLogAfter(t.Context(), position, says))
		requireToken(t, b.get("/v1/token"), b.token)
	}
	resize(1200, "ipv6=false")
	resize(b.network.MTU, "ipv6=true")
	requireToken(t, b.GetURL(b.urlOfIPv6()+"/v1/token"), b.token)
}

// sidecarAddress is that of another container, which has a port of the joined bridge.
const sidecarAddress = "10.244.1.77"

func (b *bindingTest) addSidecarPort(t *testing.T) {
	other, err := podnet.NewNamespace("sidecar")
	check(t, err)
	t.Cleanup(func() { other.Close() })
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "sidecar0"})
	pair.PeerName, pair.PeerNamespace = "sidecar1", netlink.NsFd(other.FD())
	handle := b.Net.Pod.Netlink()
	check(t, handle.LinkAdd(pair))
	port, err := handle.LinkByName("sidecar0")
	check(t, err)
	bridge, err := handle.LinkByName(b.Net.Bridge())
	check(t, err)
	check(t, handle.LinkSetMasterByIndex(port, bridge.Attrs().Index))
	check(t, handle.LinkSetUp(port))
	end, err := other.Netlink().LinkByName("sidecar1")
	check(t, err)
	address, err := netlink.ParseAddr(sidecarAddress + "/24")
	check(t, err)
	check(t, other.Netlink().AddrAdd(end, address))
	check(t, other.Netlink().LinkSetUp(end))
}

func (b *bindingTest) sidecarPort(t *testing.T) {
	begin := time.Now()
	b.Shell("ping -c 1 -W 5 " + sidecarAddress)
	results.Figure(t, "%s", milliseconds(time.Since(begin)))
}

// isPodsError says whether a frame is what the pod's own stack does about a neighbour's question on a network that is
// not ruled, as it does without the project: an ICMPv6 error or redirect, or a look for the address there; but never an
// advertisement of the address.
func isPodsError(f podnet.Frame) bool {
	const next, message = 14 + 6, 14 + 40
	return isGuestsOwn(f) && etherType(f) == unix.ETH_P_IPV6 && len(f.Data) > message && f.Data[next] == unix.IPPROTO_ICMPV6 && f.Data[message] != 136
}

func (b *bindingTest) identity(t *testing.T) {
	got := b.get("/v1/identity")
	requireAnswer(t, got)
	var identity struct{ Namespace, ServiceAccountName, VMName, PodName string }
	check(t, json.Unmarshal([]byte(got.Body), &identity))
	if identity.VMName != vmName || identity.PodName != "virt-launcher-"+vmName || identity.Namespace == "" || identity.ServiceAccountName == "" {
		t.Errorf("it is told %s", got.Body)
	}
}

// onLinkServed gives the guest a route that images with zeroconf have, and takes it away again.
func (b *bindingTest) onLinkServed(t *testing.T) {
	route := b.onLink + " dev " + b.nic
	b.Shell("ip route add " + route)
	defer b.Shell("ip route del " + route)
	b.forgetNeighbours()
	got := b.get("/v1/token")
	requireToken(t, got, b.token)
	results.Figure(t, "%s", milliseconds(got.Took))
	b.knowsEndpoint(t)
}

// leastPackets is how many packets a large answer takes at the least, and leastBytes its least size.
const (
	leastPackets = 5
	leastBytes   = 8 << 10
)

func (b *bindingTest) large(t *testing.T) {
	b.PadTokens(max(leastBytes, leastPackets*b.network.MTU))
	b.token = b.RotateToken()
	got := b.get("/v1/token")
	requireToken(t, got, b.token)
	results.Figure(t, "%d B in %s", len(got.Body), milliseconds(got.Took))
	b.PadTokens(0)
	b.token = b.RotateToken()
}

// impostorQuestions are asked half by the guest's routes, half on-link.
const impostorQuestions = 10

// arpLocktime is how long Linux keeps to what it has learned by ARP, whatever is said meanwhile
// (net.ipv4.neigh.*.locktime), in seconds, and somewhat more.
const arpLocktime = "1.1"

// impostor has the neighbour claim the address many times a second: while the guest looks for it, and for longer
// than the guest keeps to what it knows.
func (b *bindingTest) impostor(t *testing.T) {
	impostor, err := b.Net.Impersonate(t.Context())
	check(t, err)
	t.Cleanup(func() { impostor.Stop() }) // a second time, where all is well
	answers := 0
	ask := func() {
		for range impostorQuestions / 2 {
			b.forgetNeighbours()
			requireToken(t, b.get("/v1/token"), b.token)
			answers++
		}
	}
	ask()
	if !b.withoutIPv4 {
		route := b.onLink + " dev " + b.nic
		b.Shell("ip route add " + route)
		defer b.Shell("ip route del " + route)
	}
	ask()
	b.Shell("sleep " + arpLocktime)
	requireToken(t, b.get("/v1/token"), b.token)
	b.knowsEndpoint(t)
	check(t, impostor.Stop())
	if n := impostor.Requests(); n != 0 {
		t.Errorf("%d of the guest's requests came to the impostor", n)
	}
	results.Figure(t, "%d of %d", answers, impostorQuestions)
}

// knowsEndpoint fails the check if the guest takes anybody else for the metadata service. The guest of passt takes passt
// for everybody.
func (b *bindingTest) knowsEndpoint(t *testing.T) {
	if b.passt() || b.led { // whatever it learns on the other network, its question is led past it
		return
	}
	address := podnet.MetadataAddr
	if b.withoutIPv4 {
		address = podnet.MetadataIPv6Addr
	}
	known := b.Shell("ip neigh show " + address.String())
	if !strings.Contains(known, podnet.EndpointMAC.String()) {
		t.Errorf("the guest has not learned the endpoint's MAC, %s, but: %s", podnet.EndpointMAC, known)
	}
}

// urlOfIPv6 is where a guest asks that has no IPv4, by the NIC of its choice (RFC 6874).
func (b *bindingTest) urlOfIPv6() string {
	return fmt.Sprintf("http://[%s%%25%s]", podnet.MetadataIPv6Addr, b.nic)
}

// awaitIPv6 returns when the guest's kernel has found that nobody else has its NIC's addresses. No event tells of it in
// the guest's shell.
func (b *bindingTest) awaitIPv6() {
	addresses := "ip -6 addr show dev " + b.nic
	b.Shell("for i in $(seq 200); do " + addresses + " | grep -q inet6 && ! " + addresses + " | grep -q tentative && exit 0; " +
		"usleep 50000; done; exit 1")
}

func (b *bindingTest) servedByIPv6(t *testing.T) {
	b.awaitIPv6()
	got := b.GetURL(b.urlOfIPv6() + "/v1/token")
	requireToken(t, got, b.token)
	results.Figure(t, "%s", milliseconds(got.Took))
}

// neighbourAsks has the neighbour ask on every link that it has to the pod, at both addresses: by ARP or neighbour
// discovery, to everybody, and to each MAC that there is in the pod and in the guest. The pod knows the way back to it.
func (b *bindingTest) neighbourAsks(t *testing.T) {
	switch {
	case b.bridgeName != "":
		routeBack(t, b.Net, b.bridgeName, b.neighbour)
	case !b.passt() && b.network.Binding != podnet.Masquerade: // where the pod has its own way
		routeBack(t, b.Net, b.Net.Bridge(), b.neighbour)
	}
	asked := 0
	for way, mac := range b.ways(t) {
		for _, uplink := range b.uplinks() {
			replies := neighbourAsks(t, b.Net, uplink, mac)
			if b.passt() {
				replies["port of the redirection"] = askAs(t, func(ctx context.Context) (podnet.Reply, error) {
					return b.Net.NeighbourAsksAt(ctx, mac, redirectPort)
				})
			}
			for family, reply := range replies {
				if asked++; reply.Outcome != podnet.NoAnswer {
					t.Errorf("the neighbour on %s, which asks by %s %s: %v", uplink, family, way, reply)
				}
			}
		}
	}
	results.Figure(t, "%d", asked)
	// That no answer came is not because the service had gone.
	requireToken(t, b.get("/v1/token"), b.token)
}

// uplinks are the neighbour's links to the pod.
func (b *bindingTest) uplinks() []string {
	switch {
	case b.network.Bystander:
		return []string{podnet.NeighbourInterface, podnet.BystanderInterface}
	case b.second != "":
		return []string{podnet.NeighbourInterface, "up1"}
	}
	return []string{podnet.NeighbourInterface}
}

// ways are the MACs that the neighbour sends to, by how it has come to them.
func (b *bindingTest) ways(t *testing.T) map[string]net.HardwareAddr {
	ways := map[string]net.HardwareAddr{
		"by ARP":       nil,
		"by broadcast": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	links, err := b.Net.Pod.Netlink().LinkList()
	check(t, err)
	for _, link := range links {
		if mac := link.Attrs().HardwareAddr; link.Attrs().Name != "lo" {
			ways["by the MAC of "+link.Attrs().Name] = mac
		}
	}
	guest, err := net.ParseMAC(strings.TrimSpace(b.Shell("cat /sys/class/net/" + b.nic + "/address")))
	check(t, err)
	ways["by the guest's MAC"] = guest
	return ways
}

// vmPage is what the VM's own web server answers.
const vmPage = "the VM's own page"

// vmPorts are where the VM's web servers listen.
var vmPorts = []uint16{80, 8080}

// ownNetwork is the VM's own traffic, both ways.
func (b *bindingTest) ownNetwork(t *testing.T) {
	ends := b.ends(t)
	b.guestReachesNeighbour(t, ends)
	b.neighbourReachesGuest(t, ends)
}

// ends are the addresses of the VM's own traffic.
type ends struct {
	neighbour       netip.Addr // as the guest writes it
	neighbourAtHome netip.Addr // as the neighbour does
	guest           netip.Addr // as the neighbour writes it
}

// ends are those of the row, or of IPv6 for a guest that has nothing else: link-local ones, with the names or numbers
// of interfaces, where no NAT is in between.
func (b *bindingTest) ends(t *testing.T) ends {
	if !b.withoutIPv4 {
		return ends{neighbour: b.neighbour, neighbourAtHome: b.neighbour, guest: b.guest}
	}
	if b.network.Binding == podnet.Masquerade {
		return ends{neighbour: podnet.NeighbourIPv6Addr, neighbourAtHome: podnet.NeighbourIPv6Addr, guest: podnet.PodIPv6Addr}
	}
	neighbour, err := b.Net.Neighbour.LinkLocal(podnet.NeighbourInterface)
	check(t, err)
	uplink, err := b.Net.Neighbour.Netlink().LinkByName(podnet.NeighbourInterface)
	check(t, err)
	zone := fmt.Sprint(uplink.Attrs().Index)
	guest, err := netip.ParseAddr(strings.TrimSpace(b.Shell(
		"ip -6 -o addr show dev " + b.nic + " scope link | sed 's/.* inet6 //; s:/.*::'")))
	check(t, err)
	return ends{neighbour: neighbour.WithZone(b.nic), neighbourAtHome: neighbour.WithZone(zone), guest: guest.WithZone(zone)}
}

// roundTrip is the line of busybox ping, in milliseconds.
var roundTrip = regexp.MustCompile(`min/avg/max = [0-9.]+/([0-9.]+)/`)

func (b *bindingTest) guestReachesNeighbour(t *testing.T, e ends) {
	ping := roundTrip.FindStringSubmatch(b.Shell("ping -c 3 -A -W 2 " + e.neighbour.String()))
	if ping == nil {
		t.Fatalf("ping says no time")
	}
	results.Figure(t, "%s ms", ping[1])

	b.serve(t, e.neighbourAtHome, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	})
	got := b.GetURL(url(netip.AddrPortFrom(e.neighbour, 80)))
	requireAnswer(t, got)
	seen, err := netip.ParseAddrPort(got.Body)
	check(t, err)
	if seen.Addr().WithZone("") != e.guest.WithZone("") {
		t.Errorf("the neighbour sees the guest at %s, want %s", seen.Addr(), e.guest)
	}
}

func (b *bindingTest) neighbourReachesGuest(t *testing.T, e ends) {
	b.Shell("mkdir -p /tmp/www && echo -n \"" + vmPage + "\" >/tmp/www/index.html")
	for _, port := range vmPorts {
		b.Shell(fmt.Sprintf("httpd -p %d -h /tmp/www", port))
	}
	for _, port := range vmPorts {
		page, err := b.neighbourGets(t.Context(), url(netip.AddrPortFrom(e.guest, port)))
		switch closed := slices.Contains(b.unlisted, port); {
		case closed && !errors.Is(err, syscall.ECONNREFUSED):
			t.Errorf("the VM does not list port %d, and the neighbour gets from it %q, %v", port, page, err)
		case !closed && (err != nil || page != vmPage):
			t.Errorf("the neighbour gets from the VM's port %d: %q, %v", port, page, err)
		}
	}
}

// url has its zone, where there is one, as URLs have it (RFC 6874).
func url(at netip.AddrPort) string {
	return "http://" + strings.ReplaceAll(at.String(), "%", "%25") + "/"
}

// serve has the neighbour answer at its port 80 until the end of the check.
func (b *bindingTest) serve(t *testing.T, at netip.Addr, answer http.HandlerFunc) {
	listener, err := b.Net.Neighbour.Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 80).String())
	check(t, err)
	server := &http.Server{Handler: answer}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

func (b *bindingTest) neighbourGets(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, vmtest.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := b.Net.Neighbour.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// unchanged compares the guest with what it was before anything was asked, and the pod with one that is wired the same
// way without the project. It comes after the checks that change something for their purposes: that must be gone too.
func (b *bindingTest) unchanged(t *testing.T) {
	if now := b.guestRoutes(); now != b.routes {
		t.Errorf("the guest had\n%s\nand has\n%s", b.routes, now)
	}
	if strings.Contains(b.routes, podnet.MetadataAddr.String()) {
		t.Errorf("the guest was given a route to the address: %s", b.routes)
	}
	now, err := readState(b.Net.Pod)
	check(t, err)
	if difference := b.twin(t).withoutProject().difference(now.withoutProject()); len(difference) > 0 {
		t.Errorf("compared with a pod without the project:\n%s", strings.Join(difference, "\n"))
	}
	b.bridgeKeepsItsMAC(t)
}

// twin is the state of a pod of the same kind without the project.
func (b *bindingTest) twin(t *testing.T) *state {
	twin, err := podnet.New(b.network)
	check(t, err)
	defer twin.Close()
	check(t, twin.Wire())
	if b.second != "" {
		check(t, twin.AddSecondaryBridge(b.second))
	}
	state, err := readState(twin.Pod)
	check(t, err)
	return state
}

// bridgeKeepsItsMAC looks for the MACs of the endpoint where a bridge could have taken one from its port.
func (b *bindingTest) bridgeKeepsItsMAC(t *testing.T) {
	links, err := b.Net.Pod.Netlink().LinkList()
	check(t, err)
	for _, link := range links {
		mac := link.Attrs().HardwareAddr.String()
		if link.Type() == "bridge" && (mac == podnet.EndpointMAC.String() || mac == podnet.PortMAC.String()) {
			t.Errorf("the bridge %s has taken the MAC %s of the endpoint", link.Attrs().Name, mac)
		}
	}
}

const (
	// download is what the guest fetches each time, in bytes, and downloads how many times with and without the
	// project in turn: the best of each counts.
	download  = 16 << 20
	downloads = 5
	// leastRatio is no finer judgement than a busy machine allows: with seven times the work that its processors can
	// do, 0.55 was measured; with little else to do, 1.00.
	leastRatio = 0.25
)

// throughput compares what the guest fetches from the neighbour with and without the project in the pod.
func (b *bindingTest) throughput(t *testing.T) {
	b.serve(t, b.neighbour, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(download))
		io.CopyN(w, zeros{}, download)
	})
	var with, without float64
	for range downloads {
		with = max(with, b.fetch(t))
		check(t, b.Init.Stop())
		_, err := b.InPod("ip link del veth-imds && for family in bridge arp ip ip6; do nft delete table $family imds || exit; done")
		check(t, err)
		without = max(without, b.fetch(t))
		said := len(b.Init.Log())
		check(t, b.Init.Start())
		check(t, b.Init.AwaitLogAfter(t.Context(), said, "msg=wired"))
	}
	t.Logf("%.0f MB/s, %.0f MB/s without", with, without)
	results.Figure(t, "%.2f", with/without)
	if with/without < leastRatio {
		t.Errorf("the guest's network is slower with the project in the pod")
	}
}

type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}

// fetch measures one download, in megabytes per second of the guest's clock.
func (b *bindingTest) fetch(t *testing.T) float64 {
	said := b.Shell(fmt.Sprintf("read a _ </proc/uptime; wget -q -O /dev/null http://%s/; read b _ </proc/uptime; echo $a $b", b.neighbour))
	var begin, end float64
	if _, err := fmt.Sscan(strings.TrimSpace(said), &begin, &end); err != nil || end <= begin {
		t.Fatalf("no time in %q: %v", said, err)
	}
	return download / 1e6 / (end - begin)
}

// closedPatience is how long the guest waits for an answer that must not come.
const closedPatience = time.Second

// lacksNetfilter is what imds-init says where it can keep nobody from the endpoint.
const lacksNetfilter = "the node's kernel lacks nf_tables"

// closed is the only right way to be on a kernel that cannot keep the neighbour from the endpoint.
func (b *bindingTest) closed(t *testing.T) {
	got, err := b.Guest.Agent.Get(t.Context(), guestagent.Get{URL: vmtest.MetadataURL + "/healthz", Limit: closedPatience})
	check(t, err)
	if got.Failure == "" {
		t.Errorf("the guest was answered with status %d: %s", got.Status, got.Body)
	}
	results.Figure(t, "%s", got.Failure)
	_, problem, found := strings.Cut(b.Init.Log(), "level=ERROR")
	if line, _, _ := strings.Cut(problem, "\n"); !found || !strings.Contains(line, lacksNetfilter) || strings.Contains(problem, "level=ERROR") {
		t.Errorf("imds-init has not said once that %s, and nothing else:\n%s", lacksNetfilter, b.Init.Log())
	}
	if _, err := b.Net.Pod.MAC(endpointDevice); err == nil {
		t.Errorf("veth-imds is there, though nobody could be kept from it")
	}
}

// isGuestsOwn says whether a frame about the metadata address comes from nobody but the guest, which without the
// project looks for it on its network as any guest does.
func isGuestsOwn(f podnet.Frame) bool {
	return !bytes.Contains(f.Data[:12], podnet.EndpointMAC) && !bytes.Contains(f.Data[:12], podnet.PortMAC)
}

const (
	// redirectPort is what the webhook chooses for a VM that does not list it.
	redirectPort = 60080
	// launcherID is the user and the group of virt-launcher, and of passt with it.
	launcherID = 107
	// passtReady ends what passt says when its socket is there.
	passtReady = "You can now start qemu"
)

// startPasst joins the guest to the pod network as KubeVirt does in passt binding: no link is made, passt is the guest's
// network, and a process like any other in the pod.
func (b *bindingTest) startPasst(t *testing.T) {
	folder, err := os.MkdirTemp("", "passt-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	check(t, os.Chown(folder, launcherID, launcherID))
	socket := filepath.Join(folder, "socket")

	var ports []string
	for _, port := range vmPorts {
		ports = append(ports, fmt.Sprint(port))
	}
	ctx, stop := context.WithTimeout(t.Context(), vmtest.Patience)
	defer stop()
	said, to := io.Pipe()
	command := exec.Command("passt", "--foreground", "--stderr", "--runas", fmt.Sprint(launcherID),
		"--socket", socket, "--interface", "eth0", "--tcp-ports", strings.Join(ports, ","), "--udp-ports", "none")
	command.Stderr = to
	check(t, b.Net.Pod.Start(command))
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
		to.Close()
	})
	defer context.AfterFunc(ctx, func() { said.Close() })()
	if err := awaitLine(said, passtReady); err != nil {
		t.Fatalf("passt: %v", err)
	}
	b.AddNIC(qemu.NIC{MAC: passtGuestMAC, Stream: socket})
}

// awaitLine returns when a line with that text has come, and has the rest read in the background.
func awaitLine(from io.Reader, text string) error {
	var seen []string
	for lines := bufio.NewScanner(from); lines.Scan(); {
		if seen = append(seen, lines.Text()); strings.Contains(lines.Text(), text) {
			go io.Copy(io.Discard, from)
			return nil
		}
	}
	return fmt.Errorf("it has not said %q but:\n%s", text, strings.Join(seen, "\n"))
}

// passtGuestMAC is not the pod's: that is passt's own, toward the guest.
var passtGuestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x57}

// redirection is the environment of both sidecars where the VM's pod network is bound by passt.
var redirection = []string{fmt.Sprintf("IMDS_REDIRECT_PORT=%d", redirectPort)}
