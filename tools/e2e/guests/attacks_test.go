package guests

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// attack is something hostile.
type attack struct {
	// name says who does what.
	name string
	// networks are the pods' in which it is done, each in its turn.
	networks []podnet.Options
	// options are what else there is to say of the VM.
	options vmtest.Options
	// bothWays: it may depend on who wires the pod, since it is about time, or about what imds-init does all the while.
	bothWays bool
	// flood: there are too many frames to record all of them; only the uplink is watched.
	flood bool
	// do does it, and leaves the guest as it was.
	do func(*attackVM)
}

// The networks. A masquerade pod that lists ports keeps what goes to others, which is the harder case: a neighbour's
// packets for 169.254.169.254 are then not the guest's but the pod's own.
var (
	masquerade = podnet.Options{Binding: podnet.Masquerade, Ports: []uint16{22}}
	bridge     = podnet.Options{Binding: podnet.Bridge}

	inMasquerade = []podnet.Options{masquerade}
	inBridge     = []podnet.Options{bridge}
	inBoth       = []podnet.Options{masquerade, bridge}
)

// attacks are all of them.
var attacks = []attack{
	{name: "a neighbour asks", networks: inBoth, do: strangerAsks},
	{name: "a neighbour is the service", bothWays: true, networks: inBoth, do: neighbourImpersonates},
	{name: "a neighbour speaks as the service", networks: inBoth, do: neighbourSpoofs},
	{name: "proxy ARP on the uplink", networks: inBoth, do: neighbourProxiesARP},
	{name: "a neighbour's VLAN tags", networks: inBoth, do: neighbourTags},
	{name: "a neighbour's fragments", networks: inBoth, do: neighbourFragments},

	{name: "a guest's VLAN tags", networks: inBoth, do: guestTags},
	{name: "a guest's fragments", networks: inBoth, do: guestFragments},
	{name: "a guest's other ways", networks: inBoth, do: guestTakesOtherWays},
	{name: "a guest with its gateway's MAC", networks: inBoth, do: guestTakesGatewayMAC},
	{name: "a guest with our MACs", networks: inBoth, do: guestTakesOurMACs},
	{name: "a guest with our address", networks: inBoth, do: guestTakesOurAddress},
	{name: "a guest with other addresses", networks: inBoth, do: guestTakesOtherAddresses},
	{name: "a guest's router advertisement", networks: inBoth, do: guestAdvertises},
	{name: "a guest with 5,000 MACs", networks: inBoth, do: guestFillsTheBridge},
	{name: "the gateway's ARP", networks: inBoth, do: guestLooksForItsGateway},

	{name: "a browser's and a proxy's requests", networks: inMasquerade, do: foreignRequests},
	{name: "a container in the guest", networks: inMasquerade, options: vmtest.Options{Server: []string{"IMDS_HOP_LIMIT=1"}}, do: containerAsks},

	{name: "fifty senders in the guest", bothWays: true, networks: inBoth, flood: true, do: fiftySenders},
	{name: "10,000 half-open connections", networks: inBridge, options: limited, flood: true, do: halfOpenConnections},
	{name: "1,000 slow clients", networks: inBridge, options: limited, flood: true, do: slowClients},
	{name: "a flood of requests", bothWays: true, networks: inBridge, options: limited, flood: true, do: floodOfRequests},
	{name: "a flood of refused requests", networks: inBridge, options: limited, flood: true, do: floodOfRefusedRequests},
	{name: "a flood of frames", bothWays: true, networks: inBridge, options: limited, flood: true, do: floodOfFrames},
}

// limited is a VM whose sidecars have no more CPU and memory than the declared patch gives them.
var limited = vmtest.Options{Limited: true}

// Guests and their neighbours do what they should not, each in a pod of its own, with a real guest in it that goes on
// asking honestly.
func TestAttacks(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(string(way), func(t *testing.T) {
			for _, a := range attacks {
				for _, network := range a.networks {
					if way == vmtest.BySidecar || a.bothWays && network.Binding == podnet.Bridge {
						name := fmt.Sprintf("%s (%s)", a.name, network.Binding)
						t.Run(name, func(t *testing.T) {
							t.Parallel()
							a.options.WiredBy = way
							a.run(t, groupIn(way, "attacks")+"/"+name, network)
						})
					}
				}
			}
		})
	}
}

// run does the attack, and then has the checks of what was seen.
func (a attack) run(t *testing.T, subject string, network podnet.Options) {
	v := &attackVM{t: t, recordings: map[string]*podnet.Recording{}, recorded: map[string]int{}, wrong: map[string][]string{}}
	if !results.Skipping() {
		processors := int64(1)
		if a.flood { // which is about time
			processors = 2
		}
		useProcessors(t, processors)
		options := a.options
		options.Network = network
		v.VM = env.Start(t, options)
		v.undergo(a)
	}
	judge := func(name, proves string, figure func() string) {
		results.Check(t, subject, name, proves, func(t *testing.T) {
			if found := v.wrong[name]; len(found) > 0 {
				t.Fatalf("%d times, first:\n%s", len(found), strings.Join(found[:min(len(found), 5)], "\n"))
			}
			results.Figure(t, "%s", figure())
		})
	}
	frames := func(place string) func() string {
		return func() string { return fmt.Sprintf("0 of %d", v.recorded[place]) }
	}
	judge("served", "the guest that asks honestly is served during the attack and after it; the slowest answer",
		func() string { return fmt.Sprintf("%s of %d", milliseconds(v.slowestAnswer), v.answers) })
	if !a.flood { // a check of what nobody has recorded would pass
		judge("reached", "nothing of the attack came to the endpoint; of the frames that did come there", frames(endpointDevice))
		judge("answered", "nobody was answered but the guest, and the guest by nobody else; of the frames to the guest", frames(guestTap))
	}
	judge("leaked", "nothing of ours was on the uplink; of the frames that were there", frames(uplink))
	judge("probe", "each of the kubelet's probes passed within its limit; the slowest",
		func() string { return fmt.Sprintf("%s of %d", milliseconds(v.slowestProbe), v.probes) })
}

// Where frames are recorded: the neighbour's end of the uplink, and in the pod the endpoint, the guest's tap, the
// bridge as the pod's own interface, and lo.
const (
	uplink   = podnet.NeighbourInterface
	loopback = "lo"
)

// honestRequests is how often the guest asks before an attack, and after it.
const honestRequests = 3

// probeLimit is timeoutSeconds of the probe in the declared patch.
const probeLimit = 5 * time.Second

// attackVM is a VM under attack, with what was seen.
type attackVM struct {
	*vmtest.VM
	t     *testing.T
	token string
	// The parties, with the MACs and addresses that are their own. In bridge binding the neighbour is the gateway.
	guest, gateway, neighbour, endpoint packet.Party
	// forbidden are payloads of frames that must not come to the endpoint.
	forbidden [][]byte
	// guestMACs are those from which the endpoint may be asked.
	guestMACs []string
	// comesAgain is for how long an honest request that is reset is made again.
	comesAgain time.Duration

	recordings    map[string]*podnet.Recording // by the place
	recorded      map[string]int               // frames, by the place
	answers       int
	resets        int           // of them: those that came at the second attempt
	slowestAnswer time.Duration // by the guest's clock

	mu           sync.Mutex // guards what follows
	probes       int
	slowestProbe time.Duration       // with the start of its process
	wrong        map[string][]string // what should not have been, by the check that it fails
}

// fail notes for a check what should not have been.
func (v *attackVM) fail(check, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wrong[check] = append(v.wrong[check], fmt.Sprintf(format, args...))
}

// answered notes an answer that should not have been.
func (v *attackVM) answered(format string, args ...any) { v.fail("answered", format, args...) }

// undergo has the attack done to the VM, whose guest is up, and notes what is seen from before until after it.
func (v *attackVM) undergo(a attack) {
	v.token = v.RotateToken()
	v.findParties()
	v.record(uplink, v.Net.Neighbour)
	if !a.flood {
		for _, device := range []string{endpointDevice, guestTap, bridgeDevice, loopback} {
			v.record(device, v.Net.Pod)
		}
	}
	bridgeMAC := v.mac(v.Net.Pod, bridgeDevice)
	v.serve(honestRequests)
	a.do(v)
	v.serve(honestRequests)
	v.probe()
	// Something of the guest's own, so that a recording of the uplink without a frame is a broken one.
	v.Shell("arping -f -c 3 -w 3 -I eth0 " + v.gateway.Addr.String() + "; ping -c 1 -W 1 " + v.neighbour.Addr.String() + " || true")
	if now := v.mac(v.Net.Pod, bridgeDevice); now.String() != bridgeMAC.String() {
		v.fail("served", "the bridge's MAC was %s and is %s", bridgeMAC, now)
	}
	v.judge()
}

func (v *attackVM) findParties() {
	v.neighbour = packet.Party{MAC: v.mac(v.Net.Neighbour, uplink), Addr: podnet.NeighbourAddr}
	v.endpoint = packet.Party{MAC: podnet.EndpointMAC, Addr: podnet.MetadataAddr}
	if v.Binding() == podnet.Masquerade {
		v.guest = packet.Party{MAC: v.GuestMAC(), Addr: podnet.MasqueradeGuestAddr}
		v.gateway = packet.Party{MAC: v.mac(v.Net.Pod, bridgeDevice), Addr: podnet.MasqueradeGateway}
	} else {
		v.guest = packet.Party{MAC: v.GuestMAC(), Addr: podnet.PodAddr}
		v.gateway = v.neighbour
	}
	v.guestMACs = []string{v.guest.MAC.String()}
}

func (v *attackVM) mac(n *podnet.Namespace, name string) net.HardwareAddr {
	mac, err := n.MAC(name)
	check(v.t, err)
	return mac
}

func (v *attackVM) record(name string, n *podnet.Namespace) {
	recording, err := podnet.Capture(n, name)
	check(v.t, err)
	v.recordings[name] = recording
}

// serve has the guest ask honestly so many times, and notes how long the answers took by the guest's clock.
func (v *attackVM) serve(times int) {
	for range times {
		got := v.Get("/v1/token")
		for got.Failure == guestagent.Reset && got.Took < v.comesAgain {
			v.resets++
			before := got.Took
			got = v.Get("/v1/token")
			got.Took += before
		}
		if got.Status != http.StatusOK || tokenIn(got.Body) != v.token {
			v.fail("served", "the guest got %+v", got)
		}
		v.answers++
		v.slowestAnswer = max(v.slowestAnswer, got.Took)
	}
}

// probe does what the kubelet does once a minute.
func (v *attackVM) probe() {
	ctx, cancel := context.WithTimeout(v.t.Context(), probeLimit)
	defer cancel()
	begin := time.Now()
	if err := v.Server.Probe(ctx, "-live"); err != nil {
		v.fail("probe", "%v", err)
	}
	took := time.Since(begin)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.probes++
	v.slowestProbe = max(v.slowestProbe, took)
}

// while serves and probes over and over until a time has passed.
func (v *attackVM) while(d time.Duration) {
	over := time.Now().Add(d)
	var probes sync.WaitGroup
	probes.Go(func() {
		for time.Now().Before(over) {
			v.probe()
		}
	})
	for time.Now().Before(over) {
		v.serve(1)
	}
	probes.Wait()
}

// forbid notes that frames must not come to the endpoint.
func (v *attackVM) forbid(frames [][]byte) [][]byte {
	for _, frame := range frames {
		v.forbidden = append(v.forbidden, packet.Payload(frame))
	}
	return frames
}

// neighbourSends puts frames on the uplink.
func (v *attackVM) neighbourSends(frames ...[]byte) {
	for _, frame := range frames {
		check(v.t, v.Net.Neighbour.SendFrame(uplink, frame))
	}
}

// guestSends has the guest send frames, once each.
func (v *attackVM) guestSends(frames ...[]byte) {
	task, err := v.Guest.Agent.Send(v.t.Context(), guestagent.Send{Interface: "eth0", Frames: frames, Rounds: 1})
	check(v.t, err)
	ctx, cancel := context.WithTimeout(v.t.Context(), vmtest.Patience)
	defer cancel()
	sent, err := task.Wait(ctx)
	check(v.t, err)
	if sent.Frames != len(frames) {
		v.t.Fatalf("the guest sent %d of %d frames", sent.Frames, len(frames))
	}
}

// with does something while the guest's network is changed by a shell command, and undoes that by another.
func (v *attackVM) with(change, undo string, do func()) {
	v.Shell(change)
	do()
	v.Shell(undo)
}

// judge ends the recordings and looks for what should not be in them.
func (v *attackVM) judge() {
	for place, recording := range v.recordings {
		frames, err := recording.Stop()
		if err != nil {
			v.fail("served", "recording of %s: %v", place, err)
		}
		if len(frames) == 0 && place != loopback {
			v.fail("served", "the recording of %s saw nothing at all, so it proves nothing", place)
		}
		v.recorded[place] = len(frames)
		for _, f := range frames {
			v.judgeAt(place, f)
		}
	}
}

// judgeAt judges a frame by the place where it was seen.
func (v *attackVM) judgeAt(place string, f podnet.Frame) {
	switch place {
	case uplink:
		v.judgeUplink(f)
	case endpointDevice:
		v.judgeEndpoint(f)
	case guestTap:
		v.judgeGuest(f)
	default: // the pod's own interfaces
		v.judgePod(f)
	}
}

// judgeUplink: nothing of ours comes out of the pod.
func (v *attackVM) judgeUplink(f podnet.Frame) {
	if !f.Outgoing && vmtest.IsOurs(f) {
		v.fail("leaked", "%s", f.String())
	}
}

// judgeEndpoint: the guest alone is heard, and nothing of what was forbidden.
func (v *attackVM) judgeEndpoint(f podnet.Frame) {
	if f.Outgoing {
		return
	}
	if !slices.Contains(v.guestMACs, source(f)) {
		v.fail("reached", "%s", f.String())
	}
	for _, payload := range v.forbidden {
		// Short frames are padded.
		if bytes.HasPrefix(packet.Payload(f.Data), payload) {
			v.fail("reached", "%s", f.String())
		}
	}
}

// judgeGuest: whatever speaks for the address comes from the endpoint, and whatever comes from the endpoint speaks
// for the address. In a VLAN, which is another network, others may say what they like, but not with our MAC.
func (v *attackVM) judgeGuest(f podnet.Frame) {
	if inVLAN(f) && source(f) != podnet.EndpointMAC.String() {
		return
	}
	if f.Outgoing && (source(f) == podnet.EndpointMAC.String()) != speaksForAddress(f) {
		v.fail("answered", "%s", f.String())
	}
}

// judgePod: no answer comes to the pod's own stack, but those to its own probes. They ask from 127.0.0.1 and one of
// the ports that the kernel chooses from.
func (v *attackVM) judgePod(f podnet.Frame) {
	if f.Outgoing || etherType(f) != unix.ETH_P_IP || !speaksForAddress(f) {
		return
	}
	const header, chosen = 20, 32768
	packet := packet.Payload(f.Data)
	to := netip.AddrFrom4([4]byte(packet[16:20]))
	probe := to.IsLoopback() && packet[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(packet[header+2:]) >= chosen
	if !probe {
		v.fail("answered", "%s", "in the pod: "+f.String())
	}
}

// inVLAN says whether the frame's outermost tag gives it more than a priority.
func inVLAN(f podnet.Frame) bool {
	const identifier = 0x0fff
	tag := binary.BigEndian.Uint16(f.Data[12:])
	return (tag == unix.ETH_P_8021Q || tag == unix.ETH_P_8021AD) && binary.BigEndian.Uint16(f.Data[14:])&identifier != 0
}

// speaksForAddress says whether one of the endpoint's addresses is the frame's source, or its ARP sender.
func speaksForAddress(f podnet.Frame) bool {
	payload, address := packet.Payload(f.Data), podnet.MetadataAddr.AsSlice()
	switch etherType(f) {
	case unix.ETH_P_IP:
		return len(payload) >= 16 && bytes.Equal(payload[12:16], address)
	case unix.ETH_P_ARP:
		return len(payload) >= 18 && bytes.Equal(payload[14:18], address)
	case unix.ETH_P_IPV6:
		return len(payload) >= 24 && bytes.Equal(payload[8:24], podnet.MetadataIPv6Addr.AsSlice())
	}
	return false
}

// source is the frame's source MAC as text.
func source(f podnet.Frame) string { return net.HardwareAddr(f.Data[6:12]).String() }

// etherType is that of what follows the VLAN tags.
func etherType(f podnet.Frame) uint16 {
	behind := len(f.Data) - len(packet.Payload(f.Data))
	return binary.BigEndian.Uint16(f.Data[behind-2:])
}

// What should not be is noticed wherever it is seen, and what may be is not.
func TestEvidence(t *testing.T) {
	endpoint := packet.Party{MAC: podnet.EndpointMAC, Addr: podnet.MetadataAddr}
	guest := packet.Party{MAC: net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Addr: podnet.PodAddr}
	stranger := packet.Party{MAC: net.HardwareAddr{0x52, 0x54, 0, 0x65, 0x43, 0x21}, Addr: podnet.NeighbourAddr}
	liar := packet.Party{MAC: stranger.MAC, Addr: podnet.MetadataAddr}
	lo := packet.Party{MAC: make(net.HardwareAddr, 6), Addr: netip.MustParseAddr("127.0.0.1")}
	own := packet.Party{MAC: lo.MAC, Addr: podnet.MetadataAddr}
	forbidden := packet.UDP(guest, endpoint, 20001, 80, []byte("a question"))

	const in, out = false, true
	for _, c := range []struct {
		name     string
		place    string
		outgoing bool
		frame    []byte
		wrong    bool
	}{
		{"the guest's question", endpointDevice, in, packet.SYN(guest, endpoint, 40000, 80), false},
		{"the answer", endpointDevice, out, packet.SYN(endpoint, guest, 80, 40000), false},
		{"a stranger's question", endpointDevice, in, packet.SYN(stranger, endpoint, 40000, 80), true},
		{"what was forbidden", endpointDevice, in, forbidden, true},
		{"what was forbidden, in a VLAN and padded", endpointDevice, in, append(packet.Tagged(forbidden, packet.CustomerTag), 0, 0), true},

		{"the answer", guestTap, out, packet.SYN(endpoint, guest, 80, 40000), false},
		{"a stranger's word", guestTap, out, packet.SYN(stranger, guest, 80, 40000), false},
		{"what the guest itself says", guestTap, in, packet.SYN(packet.Party{MAC: guest.MAC, Addr: endpoint.Addr}, stranger, 80, 40000), false},
		{"an impostor's answer", guestTap, out, packet.SYN(liar, guest, 80, 40000), true},
		{"an impostor's ARP", guestTap, out, packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), true},
		{"an impostor's ARP with a priority", guestTap, out, packet.Tagged(packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), packet.PriorityTag), true},
		{"somebody of a VLAN", guestTap, out, packet.Tagged(packet.Gratuitous(packet.ARPReply, liar, packet.Broadcast), packet.CustomerTag), false},
		{"a stranger with our MAC", guestTap, out, packet.SYN(packet.Party{MAC: endpoint.MAC, Addr: stranger.Addr}, guest, 80, 40000), true},

		{"an answer to the pod", bridgeDevice, in, packet.SYN(endpoint, guest, 80, 40000), true},
		{"an answer to the pod", loopback, in, packet.SYN(own, guest, 80, 40000), true},
		{"an answer to a probe", loopback, in, packet.SYN(own, lo, 80, 40000), false},
		{"an answer to a guest that pretends to be a probe", loopback, in, packet.SYN(own, lo, 80, 20000), true},

		{"a neighbour's own attack", uplink, out, packet.SYN(stranger, endpoint, 40000, 80), false},
		{"a question on the uplink", uplink, in, packet.SYN(guest, packet.Party{MAC: stranger.MAC, Addr: endpoint.Addr}, 40000, 80), true},
		{"an answer on the uplink", uplink, in, packet.SYN(endpoint, stranger, 80, 40000), true},
		{"the guest's own traffic", uplink, in, packet.SYN(guest, stranger, 40000, 80), false},
	} {
		t.Run(c.place+"/"+c.name, func(t *testing.T) {
			v := &attackVM{wrong: map[string][]string{}, guestMACs: []string{guest.MAC.String()}}
			v.forbid([][]byte{forbidden})
			v.judgeAt(c.place, podnet.Frame{Outgoing: c.outgoing, Data: c.frame})
			if found := len(v.wrong) > 0; found != c.wrong {
				t.Errorf("noticed: %t, want %t", found, c.wrong)
			}
		})
	}
}
