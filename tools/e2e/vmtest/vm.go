package vmtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/dhcp"
	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/rootfs"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// sidecarImage is the image of the sidecars.
const sidecarImage = "kubevirt-imds-server:e2e"

// MetadataURL is where the guest asks.
const MetadataURL = "http://169.254.169.254"

// guestMAC is that of the guest's first NIC in masquerade binding, where no other is wanted.
var guestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

// Patience is how long a step may take that takes some seconds on an idle machine.
const Patience = time.Minute

// WiredBy is who gives the guest its path, in the words of the pod's annotation.
type WiredBy string

const (
	// BySidecar: imds-init is a sidecar of the pod.
	BySidecar WiredBy = "sidecar"
	// ByNodeAgent: it is the agent of the pod's node, which has no other pod.
	ByNodeAgent WiredBy = "node-agent"
)

// Options say what VM it is. The zero value is one in masquerade binding.
type Options struct {
	// Network is the pod's.
	Network podnet.Options
	// Name of the VM. Empty: vm.
	Name string
	// Pod is the name of the pod. Empty: virt-launcher-, and the VM's name.
	Pod string
	// Audiences are those of the tokens beside the default one.
	Audiences []string
	// WiredBy is who wires the pod. Empty: a sidecar.
	WiredBy WiredBy
	// Beside is a VM on whose node this one is, with the same agent. nil: it is the first VM of its node.
	Beside *VM
	// Init and Server are more of the environment by which imds-init wires, and of imds-server's, such as
	// IMDS_REQUIRE_HEADER=true.
	Init, Server []string
	// WithoutNetfilter: to imds-init the kernel has no nf_tables.
	WithoutNetfilter bool
	// Memory of the guest in MiB. 0: QEMU's package decides.
	Memory int
	// Limited: the sidecars have no more CPU time and memory than the declared patch gives them.
	Limited bool
}

// VM is a VM's pod.
type VM struct {
	// Net is the pod's network, with the neighbour beyond it. Its namespace Guest is not used: the guest is a real
	// one.
	Net *podnet.Pod
	// Init is imds-init, in the pod or on its node, and Server the other sidecar.
	Init, Server *Sidecar
	// Guest is QEMU with the guest in it, once it has booted.
	Guest *qemu.Guest
	// Frames is how many were seen on the uplinks, once they are no longer watched.
	Frames int
	// Expected, where it is set, says which frames of ours on the uplink are no failure: those that a hostile
	// guest has made itself, and that a bridge has to pass on.
	Expected func(podnet.Frame) bool

	t       *testing.T
	image   rootfs.Image
	options Options
	nics    []qemu.NIC
	primary string // the name by which QEMU knows the pod network's NIC
	// primaryDHCP starts the DHCP server of the pod network; nil: it has none.
	primaryDHCP func()
	node        *kubelet.Node
	pod         *kubelet.Pod
	tokens      *tokens
	undo        []func() // what takes away what there is, the last first
}

// In returns the VM for a subtest of the test that it was made for: until that ends, what fails, fails it.
func (v *VM) In(t *testing.T) *VM {
	outer := v.t
	v.t = t
	t.Cleanup(func() { v.t = outer })
	return v
}

// Pod is the name of the VM's pod.
func (v *VM) Pod() string { return v.options.Pod }

// Start goes through all steps: a VM whose guest has its addresses.
func (e *Environment) Start(t *testing.T, options Options) *VM {
	v := e.New(t, options)
	v.StartSidecars()
	v.Wire()
	v.Boot()
	v.Configure("eth0")
	return v
}

// New makes a pod with its network and its tokens, in which nothing runs yet.
func (e *Environment) New(t *testing.T, options Options) *VM {
	if options.WiredBy == "" {
		options.WiredBy = BySidecar
	}
	if options.Name == "" {
		options.Name = "vm"
	}
	if options.Pod == "" {
		options.Pod = "virt-launcher-" + options.Name
	}
	if options.Network.GuestMAC == nil && (options.Network.Binding == "" || options.Network.Binding == podnet.Masquerade) {
		options.Network.GuestMAC = guestMAC
	}
	v := &VM{t: t, image: e.image, options: options, tokens: new(tokens)}
	t.Cleanup(v.explain)
	t.Cleanup(v.End)
	var err error
	v.Net, err = podnet.New(options.Network)
	Check(t, err)
	v.later(func() { v.clean(v.Net.Close()) })
	v.Watch(podnet.NeighbourInterface)

	v.runOnNode(e)
	return v
}

// runOnNode makes the pod's sandbox on its node, and gets the sidecars ready.
func (v *VM) runOnNode(e *Environment) {
	manifests := filepath.Join(e.repository, "kustomize")
	patches := []string{filepath.Join(manifests, "sidecar")}
	agent := filepath.Join(manifests, "components", "node-agent")
	withAgent := v.options.WiredBy == ByNodeAgent
	if withAgent {
		patches = append(patches, filepath.Join(agent, "25-node-agent.yaml"))
	}
	pod, err := kubelet.LauncherPod(sidecarImage, metav1.ObjectMeta{
		Namespace: "tenant", Name: v.options.Pod, Annotations: map[string]string{"imds.kubevirt.io/vm-name": v.options.Name},
	}, v.options.Name, patches...)
	Check(v.t, err)
	addAudiences(pod, v.options.Audiences)
	if beside := v.options.Beside; beside != nil {
		v.node, v.tokens, v.Init = beside.node, beside.tokens, beside.Init
	} else {
		v.node = v.newNode(e)
	}
	v.pod = v.sandbox(pod, v.Net.Pod)
	server := v.options.Server
	if withAgent {
		server = slices.Concat(server, v.options.Init)
	}
	switch {
	case v.Init != nil:
	case withAgent:
		v.Init = v.agentOn(filepath.Join(agent, "daemonset.yaml"))
	default:
		v.Init, err = v.pod.Sidecar("imds-init", v.options.Init...)
		Check(v.t, err)
	}
	v.Init.WithoutNetfilter = v.options.WithoutNetfilter
	v.Server, err = v.pod.Sidecar("imds-server", server...)
	Check(v.t, err)
}

// newNode makes a node, with the folder in which its kubelet has its pods.
func (v *VM) newNode(e *Environment) *kubelet.Node {
	folder, err := os.MkdirTemp(e.folder, "node-")
	Check(v.t, err)
	// The users of the sidecars find their volumes in it.
	Check(v.t, os.Chmod(folder, 0o755))
	return &kubelet.Node{
		Images: map[string]string{sidecarImage: e.sidecars(), "kubevirt-imds-server": e.sidecars()}, Folder: folder,
		HostPaths: map[string]string{"/var/lib/kubelet/pods": folder}, Token: v.tokens.issue, Limits: v.options.Limited,
	}
}

func (v *VM) sandbox(pod *corev1.Pod, network *podnet.Namespace) *kubelet.Pod {
	sandbox, err := v.node.Sandbox(pod, network)
	Check(v.t, err)
	v.later(func() { v.clean(sandbox.Stop()) })
	return sandbox
}

// agentOn makes the pod that the DaemonSet has on the node.
func (v *VM) agentOn(manifest string) *Sidecar {
	network, err := podnet.NewNamespace("node")
	Check(v.t, err)
	v.later(func() { v.clean(network.Close()) })
	pod, err := kubelet.DaemonSetPod(manifest)
	Check(v.t, err)
	agent, err := v.sandbox(pod, network).Sidecar("imds-node-agent")
	Check(v.t, err)
	return agent
}

// WiredBy is who wires the pod.
func (v *VM) WiredBy() WiredBy { return v.options.WiredBy }

// Binding is that of the pod's network.
func (v *VM) Binding() podnet.Binding {
	if v.options.Network.Binding == "" {
		return podnet.Masquerade
	}
	return v.options.Network.Binding
}

// GuestMAC is that of the guest's first NIC, once [VM.Wire] has been called.
func (v *VM) GuestMAC() net.HardwareAddr { return v.nics[0].MAC }

// End takes away the pod with all that is in it, as the end of the check does, and judges what was seen on its uplink.
// It may be called twice.
func (v *VM) End() {
	for len(v.undo) > 0 {
		end := len(v.undo) - 1
		last := v.undo[end]
		v.undo = v.undo[:end]
		last()
	}
}

// later has something taken away by [VM.End].
func (v *VM) later(take func()) { v.undo = append(v.undo, take) }

// explain shows, where the check has failed, what the sidecars have written.
func (v *VM) explain() {
	for _, c := range []*Sidecar{v.Init, v.Server} {
		if v.t.Failed() && c != nil {
			v.t.Logf("log of %s in %s:\n%s", c.Name, v.options.Pod, c.Log())
		}
	}
}

// clean fails the check if something could not be taken away.
func (v *VM) clean(err error) {
	if err != nil {
		v.t.Errorf("%v", err)
	}
}

// PadTokens has all tokens from the next ones on bear that many bytes of what nobody reads.
func (v *VM) PadTokens(bytes int) { v.tokens.padding = bytes }

// RotateToken does what the kubelet does when 80 % of a token's life have passed, and returns the new default one.
func (v *VM) RotateToken() string {
	Check(v.t, v.pod.Refresh())
	return v.tokens.current
}

// StartSidecars starts imds-init, unless another VM has done so for the node, and imds-server. At the check's end they are stopped, and must have been there
// until then, and end with exit status 0.
func (v *VM) StartSidecars() {
	for _, c := range []*Sidecar{v.Init, v.Server} {
		if c == v.Init && v.options.Beside != nil {
			continue
		}
		Check(v.t, c.Start())
		v.later(func() {
			v.clean(c.Check())
			v.clean(c.Stop())
		})
	}
}

// Wire does what virt-handler does: the bridge, the tap, and the DHCP server.
func (v *VM) Wire() {
	network := v.options.Network
	uplink := network.PrimaryInterface
	if uplink == "" {
		uplink = "eth0"
	}
	mtu := network.MTU
	if mtu == 0 {
		mtu = 1500
	}
	nic := qemu.NIC{MTU: mtu, Tap: v.Net.Tap(), MAC: network.GuestMAC}
	var lease *dhcp.Lease // nil: KubeVirt starts no DHCP server
	switch {
	case network.Binding == podnet.Masquerade || network.Binding == "":
		given := dhcp.Masquerade(nic.MAC, mtu)
		lease = &given
	case network.Binding == podnet.Bridge && network.Network != podnet.Layer2:
		given, err := dhcp.OfInterface(v.Net.Pod, uplink)
		Check(v.t, err)
		lease, nic.MAC = &given, given.MAC
	default:
		var err error
		nic.MAC, err = v.Net.Pod.MAC(uplink)
		Check(v.t, err)
	}
	Check(v.t, v.Net.Wire())
	v.nics = append(v.nics, nic)
	if lease != nil {
		v.primaryDHCP = func() { v.serveDHCP(v.Net.Bridge(), *lease) }
		v.primaryDHCP()
	}
}

// AddSecondary gives the VM one more network, in bridge binding: its NIC is plugged into a running guest, or there
// from the boot on. The name is like pod37a8eec1ce1.
func (v *VM) AddSecondary(iface string) {
	Check(v.t, v.Net.AddSecondaryBridge(iface))
	v.Watch(fmt.Sprintf("up%d", len(v.nics)))
	lease, err := dhcp.OfInterface(v.Net.Pod, iface)
	Check(v.t, err)
	hash := strings.TrimPrefix(iface, "pod")
	v.serveDHCP("k6t-"+hash, lease)
	nic := qemu.NIC{MTU: lease.MTU, Tap: "tap" + hash, MAC: lease.MAC}
	v.nics = append(v.nics, nic)
	if v.Guest != nil {
		_, err := v.Guest.Plug(v.t.Context(), nic)
		Check(v.t, err)
	}
}

// serveDHCP answers on a bridge from the address that virt-handler has given to it.
func (v *VM) serveDHCP(bridge string, lease dhcp.Lease) {
	link, err := v.Net.Pod.Netlink().LinkByName(bridge)
	Check(v.t, err)
	addresses, err := v.Net.Pod.Netlink().AddrList(link, netlink.FAMILY_V4)
	Check(v.t, err)
	if len(addresses) == 0 {
		v.t.Fatalf("the bridge %s has no IPv4 address for a DHCP server to answer from", bridge)
	}
	own, _ := netip.AddrFromSlice(addresses[0].IP.To4())
	server, err := dhcp.Serve(v.Net.Pod, bridge, own, lease)
	Check(v.t, err)
	v.later(func() { v.clean(server.Close()) })
}

// Boot starts the guest and returns when it has booted.
func (v *VM) Boot() {
	guest, err := qemu.Boot(v.t.Context(), v.machine())
	Check(v.t, err)
	v.own(guest)
}

// machine is what QEMU needs to know of the VM.
func (v *VM) machine() qemu.Options {
	return qemu.Options{Image: v.image, Namespace: v.Net.Pod, NICs: v.nics, Memory: v.options.Memory}
}

// own takes a guest for the VM's, which ends with the check.
func (v *VM) own(guest *qemu.Guest) {
	v.Guest, v.primary = guest, "nic0"
	v.later(func() {
		if v.t.Failed() {
			v.t.Logf("console of the guest:\n%s", guest.Console())
		}
		v.clean(guest.Close())
	})
}

// Configure has the guest's DHCP client configure a NIC.
func (v *VM) Configure(nic string) {
	v.Shell("ip link set " + nic + " up && udhcpc -i " + nic + " -n -q -f -t 20 -T 1 -s /etc/udhcpc.sh")
}

// Shell runs a command in the guest that must succeed, and returns what it wrote.
func (v *VM) Shell(command string) string {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	output, err := v.Guest.Agent.Shell(ctx, command)
	Check(v.t, err)
	return output
}

// Get asks from inside the guest, by its own routes, for a path such as /v1/token.
func (v *VM) Get(path string) guestagent.Got { return v.GetURL(MetadataURL + path) }

// GetURL is Get for a whole URL.
func (v *VM) GetURL(url string) guestagent.Got { return v.Request(guestagent.Get{URL: url}) }

// Request makes a request from inside the guest that need not succeed. Without a URL it is for the token.
func (v *VM) Request(g guestagent.Get) guestagent.Got {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	if g.URL == "" {
		g.URL = MetadataURL + "/v1/token"
	}
	got, err := v.Guest.Agent.Get(ctx, g)
	Check(v.t, err)
	return got
}

// Migrate moves the guest to another VM's pod, whose network has been wired and in which no guest is: the same VM
// in another pod, with the same addresses.
func (v *VM) Migrate(target *VM) qemu.Migration {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	guest, err := qemu.Incoming(v.t.Context(), target.machine())
	Check(v.t, err)
	target.own(guest)
	migration, err := v.Guest.MigrateTo(ctx, guest)
	Check(v.t, err)
	v.Guest = nil
	return migration
}

// Ask has the guest ask for a path many times a second, until Stop.
func (v *VM) Ask(path string, rate int) *guestagent.Task[guestagent.Asked] {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	task, err := v.Guest.Agent.Ask(ctx, guestagent.Ask{Get: guestagent.Get{URL: MetadataURL + path}, Rate: rate})
	Check(v.t, err)
	return task
}

// Stop ends the asking and returns its report, after the last request's answer or time limit. Of a guest that has
// migrated it is the target's VM that is told to stop.
func (v *VM) Stop(asking *guestagent.Task[guestagent.Asked]) guestagent.Asked {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	asked, err := asking.Stop(ctx)
	Check(v.t, err)
	return asked
}

// AwaitAnswers returns when the guest, asked for it, has got that many good answers one after the other, so that
// what asks beside it has had the time to.
func (v *VM) AwaitAnswers(n int) {
	for range n {
		if got := v.Get("/healthz"); got.Status != 200 {
			v.t.Fatalf("GET /healthz: status %d, %s: %s", got.Status, got.Failure, got.Detail)
		}
	}
}

// RemoveBridge deletes the pod network's bridge, as an accident would.
func (v *VM) RemoveBridge() { Check(v.t, v.Net.RemoveBridge()) }

// RestoreBridge makes it anew, with its ports, and a DHCP server on it: the old one heard the old bridge alone.
func (v *VM) RestoreBridge() {
	Check(v.t, v.Net.RestoreBridge())
	if v.primaryDHCP != nil {
		v.primaryDHCP()
	}
}

// AddNIC gives the VM, before it boots, a NIC whose other end the check has made itself, such as passt's socket.
func (v *VM) AddNIC(nic qemu.NIC) { v.nics = append(v.nics, nic) }

// UnplugPrimary is NIC hot-unplug of the pod network on a running guest, as KubeVirt does it: the NIC leaves the guest,
// and virt-handler deletes the tap.
func (v *VM) UnplugPrimary() {
	Check(v.t, v.Guest.Unplug(v.t.Context(), v.primary))
	Check(v.t, v.Net.UnplugTap())
}

// PlugNIC is NIC hot-plug, once virt-handler has made a new tap: the guest has a NIC again, without an address.
func (v *VM) PlugNIC() {
	var err error
	v.primary, err = v.Guest.Plug(v.t.Context(), v.nics[0])
	Check(v.t, err)
}

// startContainer makes, in the guest, a network of its own behind the guest's NAT, as a container engine does, and
// writes the number of the process that holds it.
const startContainer = `
set -e
load nat
echo 1 >/proc/sys/net/ipv4/ip_forward
# The kernel names the other end: veth0.
ip link add nat0 type veth
unshare -n sleep 100000 >/dev/null 2>&1 &
holder=$!
# Until it has a network of its own it is in the guest's.
while [ "$(readlink /proc/$holder/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do usleep 10000; done
ip link set veth0 netns $holder
ip addr add 172.17.0.1/16 dev nat0
ip link set nat0 up
inside() { nsenter -t $holder -n "$@"; }
inside ip addr add 172.17.0.2/16 dev veth0
inside ip link set veth0 up
inside ip route add default via 172.17.0.1
echo $holder
`

// StartContainer makes a container's network in the guest. The prefix it returns has a shell command run in it.
func (v *VM) StartContainer() (prefix string) {
	holder := strings.TrimSpace(v.Shell(startContainer))
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	Check(v.t, v.Guest.Agent.NAT(ctx, guestagent.NAT{Interface: "eth0"}))
	return "nsenter -t " + holder + " -n "
}
