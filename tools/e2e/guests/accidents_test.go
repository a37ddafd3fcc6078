package guests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// bridged is each binding by a bridge, wired by the sidecar. With the node agent one binding will do.
var bridged = []struct {
	way     vmtest.WiredBy
	binding podnet.Binding
}{
	{vmtest.BySidecar, podnet.Masquerade},
	{vmtest.BySidecar, podnet.Bridge},
	{vmtest.ByNodeAgent, podnet.Bridge},
}

// Whatever happens in a VM's pod is over in less than a second: the guest asks ten times a second all the while, and
// counts. In each binding one accident after the other happens to one guest.
func TestAccidents(t *testing.T) {
	t.Parallel()
	for _, c := range bridged {
		t.Run(string(c.way)+"/"+string(c.binding), func(t *testing.T) {
			t.Parallel()
			subject := groupIn(c.way, "accidents") + "/" + string(c.binding)
			var v *accidentVM
			if !results.Skipping() {
				useProcessors(t, 2)
				v = startAccidentVM(t, vmtest.Options{
					WiredBy: c.way, Name: "accidents-" + string(c.binding), Network: podnet.Options{Binding: c.binding},
				})
			}
			for _, r := range accidentRows(c.way, c.binding) {
				t.Run(r.name, func(t *testing.T) {
					var m *measured
					if !results.Skipping() {
						m = r.measure(v.in(t))
					}
					m.judge(t, subject+"/"+r.name, v)
				})
			}
			checkPod(t, subject, v)
		})
	}
}

// checkPod is the last check of a pod in which something happened.
func checkPod(t *testing.T, subject string, v *accidentVM) {
	const proves = "the pod of the accidents starts and ends, and lets nothing of ours out by its uplink meanwhile"
	results.Check(t, subject, "pod", proves, func(t *testing.T) { v.in(t).End() })
}

// accidentVM is one guest and all that happens to it.
type accidentVM struct {
	*vmtest.VM
	t       *testing.T
	changes *changes
	before  *state         // of the pod, before the first accident
	held    map[string]int // open files of the sidecars, then
	unruled windows        // while somebody had the rules of the bridge deleted
}

// startAccidentVM starts a VM and remembers how its pod is then.
func startAccidentVM(t *testing.T, options vmtest.Options) *accidentVM {
	v := &accidentVM{VM: env.Start(t, options), t: t}
	v.Expected = v.unruled.mayLeave
	// With answers given, both sidecars have opened what they keep open.
	v.AwaitAnswers(3)
	var err error
	v.changes, err = watchChanges(v.Net.Pod)
	check(t, err)
	t.Cleanup(v.changes.close)
	v.before, err = readState(v.Net.Pod)
	check(t, err)
	v.held = v.descriptors()
	return v
}

// in returns the VM for a subtest.
func (v *accidentVM) in(t *testing.T) *accidentVM {
	outer := v.t
	v.t = t
	t.Cleanup(func() { v.t = outer })
	v.In(t)
	return v
}

// accidentRow is an accident, or several, that are measured as one.
type accidentRow struct {
	name    string
	measure func(*accidentVM) *measured
}

func accidentRows(way vmtest.WiredBy, binding podnet.Binding) []accidentRow {
	var rows []accidentRow
	for _, a := range accidentsIn(way, binding) {
		rows = append(rows, accidentRow{a.name, func(v *accidentVM) *measured { return v.measure(a) }})
	}
	rows = append(rows, reboots...)
	return append(rows, accidentRow{fmt.Sprintf("%d-in-a-row", manyAccidents), (*accidentVM).measureMany})
}

// accident is something that happens to a pod whose guest is served.
type accident struct {
	name   string
	happen func(*accidentVM) error
	// mend is what others than the project do then: virt-handler, the CNI plugin. nil: nothing.
	mend func(*accidentVM) error
	// initAnew and listensAnew: imds-init, or imds-server, is back only when it has said so once more. The
	// connections of before have ended with the process, or with the device by which they came.
	initAnew, listensAnew bool
	// unplugged: the guest has lost its NIC, and gets it back when all has healed.
	unplugged bool
	// unruled: the rules of the bridge are gone for a moment.
	unruled bool
	// ipv6: the guest asks over IPv6, which it is about.
	ipv6 bool
	// ends: the life of a process.
	ends bool
}

// accidentsIn are those that can happen in a binding, and to who wires it.
func accidentsIn(way vmtest.WiredBy, binding podnet.Binding) []accident {
	all := []accident{
		{name: "server-killed", happen: func(v *accidentVM) error { return restart(v.Server) }, listensAnew: true, ends: true},
		{name: "init-killed", happen: func(v *accidentVM) error { return restart(v.Init) }, initAnew: true, ends: true},
		{name: "both-killed", happen: killBoth, initAnew: true, listensAnew: true, ends: true},
		{name: "nic-replugged", happen: unplugNIC, mend: plugTap, unplugged: true},
		{name: "bridge-remade", happen: removeBridge, mend: restoreBridge},
		{name: "veth-imds-deleted", happen: inPod("ip link del veth-imds"), listensAnew: true},
		{name: "veth-imds-br-deleted", happen: inPod("ip link del veth-imds-br"), listensAnew: true},
		{name: "veth-imds-br-off-bridge", happen: inPod("ip link set veth-imds-br nomaster")},
		{name: "bridge-table-deleted", happen: inPod("nft delete table bridge imds"), unruled: true},
		{name: "ip-table-deleted", happen: inPod("nft delete table ip imds")},
		{name: "arp-table-deleted", happen: inPod("nft delete table arp imds")},
		{name: "ip6-table-deleted", happen: inPod("nft delete table ip6 imds"), ipv6: true},
		{name: "address-deleted", happen: inPod("ip addr del 169.254.169.254/32 dev veth-imds")},
		{name: "ipv6-address-deleted", happen: inPod("ip addr del fe80::a9fe:a9fe/64 dev veth-imds"), ipv6: true},
		{name: "rule-deleted", happen: inPod("ip rule del from 169.254.169.254")},
		{name: "routes-deleted", happen: inPod("ip route flush table $(ip rule | sed -n 's/.*from 169.254.169.254 lookup //p')")},
		{name: "ipv6-route-deleted", happen: inPod("ip -6 route del fe80::/64 dev veth-imds"), ipv6: true},
		{name: "port-isolation-ended", happen: inPod("bridge link set dev veth-imds-br isolated off")},
	}
	if way == vmtest.ByNodeAgent {
		all = append(all,
			accident{name: "agent-upgraded", happen: upgradeAgent, initAnew: true, ends: true},
			accident{name: "agent-away", happen: loseWithoutAgent, mend: startInit, initAnew: true, ends: true})
	}
	if binding == podnet.Bridge {
		all = append(all, accident{name: "uplink-isolation-ended", happen: inPod("bridge link set dev eth0-nic isolated off")})
	}
	return all
}

// inPod is what somebody does in the pod's network.
func inPod(command string) func(*accidentVM) error {
	return func(v *accidentVM) error {
		_, err := v.InPod(command)
		return err
	}
}

// restart does at once what the kubelet does at the first time. Its back-off at the next ones is left out.
func restart(c *vmtest.Sidecar) error {
	c.Kill()
	return c.Start()
}

func killBoth(v *accidentVM) error {
	v.Init.Kill()
	v.Server.Kill()
	return errors.Join(v.Init.Start(), v.Server.Start())
}

// upgradeAgent does what a roll-out of the DaemonSet does: the old agent ends, and then the new one begins.
func upgradeAgent(v *accidentVM) error { return errors.Join(v.Init.Stop(), v.Init.Start()) }

// loseWithoutAgent has the pod lose its link while nobody can repair it.
func loseWithoutAgent(v *accidentVM) error {
	if err := v.Init.Stop(); err != nil {
		return err
	}
	return inPod("ip link set veth-imds-br nomaster")(v)
}

func startInit(v *accidentVM) error { return v.Init.Start() }

func unplugNIC(v *accidentVM) error     { v.UnplugPrimary(); return nil }
func plugTap(v *accidentVM) error       { return v.Net.PlugTap() }
func removeBridge(v *accidentVM) error  { v.RemoveBridge(); return nil }
func restoreBridge(v *accidentVM) error { v.RestoreBridge(); return nil }

// plugNIC gives the guest its NIC back. No event tells in the guest that it is there.
func (v *accidentVM) plugNIC() {
	v.PlugNIC()
	v.Shell("for i in $(seq 500); do test -d /sys/class/net/eth0 && exit 0; usleep 20000; done; exit 1")
	v.Configure("eth0")
}

// reboots are accidents that the guest's asking does not outlive: it begins to ask as soon as its network is up
// again, and what it loses then is counted.
var reboots = []accidentRow{
	{"guest-rebooted", func(v *accidentVM) *measured { return v.measureBoot(v.reboot) }},
	{"guest-reset", func(v *accidentVM) *measured { return v.measureBoot(v.Guest.Reset) }},
}

// reboot has the guest's own kernel begin it.
func (v *accidentVM) reboot(ctx context.Context) error {
	boots := v.Guest.Agent.Boots()
	if _, err := v.Guest.Agent.Run(ctx, guestagent.Run{Command: "reboot -f"}); err == nil {
		return errors.New("the guest has answered a command that reboots it")
	}
	return v.Guest.AwaitBoot(ctx, boots)
}

// measureBoot measures a boot. The gap begins when the network is up.
func (v *accidentVM) measureBoot(boot func(context.Context) error) *measured {
	m := &measured{err: boot(v.t.Context()), hale: true}
	if m.err == nil {
		v.Configure("eth0")
		asking := v.ask(tokenURL, usualPatience)
		v.letAsk(2 * time.Second)
		m.asked = asking.stop()
		m.lost = m.asked.Lost
	}
	m.leak = v.leaks()
	return m
}

const (
	manyAccidents = 100
	// manyWithEnds is how many of them may end a process. In those after them the processes have to live on, or
	// what they leak would end with them.
	manyWithEnds = 20
	// manyPause is between two of them.
	manyPause = 200 * time.Millisecond
	// manyPatience is how long the guest waits for an answer. The kernel sends what was lost again after 1, 3 and
	// 7 s, and may meet another accident each time.
	manyPatience = 20 * time.Second
)

// measureMany makes accident after accident happen, in an order that is the same each time. To heal is what the
// slowest took.
func (v *accidentVM) measureMany() *measured {
	m := &measured{}
	order := rand.New(rand.NewPCG(1, manyAccidents))
	all := accidentsIn(v.WiredBy(), v.Binding())
	var excuses windows
	var history strings.Builder
	before := v.sizes()
	asking := v.ask(tokenURL, manyPatience)
	for n := range manyAccidents {
		a := all[order.IntN(len(all))]
		for n >= manyWithEnds && a.ends {
			a = all[order.IntN(len(all))]
		}
		begin := time.Since(asking.told)
		h := v.happen(a)
		fmt.Fprintf(&history, "%s to %s: %s\n", begin, time.Since(asking.told), a.name)
		if h.err != nil {
			m.err = fmt.Errorf("accident %d, %s: %w", n, a.name, h.err)
			break
		}
		if h.heal-h.stalled >= m.heal-m.stalled {
			m.heal, m.stalled, m.slowest = h.heal, h.stalled, a.name
		}
		m.anyGap = m.anyGap || a.unplugged
		excuses.all = append(excuses.all, h.excuses.all...)
		v.letAsk(manyPause)
	}
	v.letAsk(time.Second)
	m.asked = asking.stop()
	m.lost, m.excused = m.asked.judge(&excuses)
	m.leak = append(v.leaks(), m.growth(before, v.sizes())...)
	m.history = "since the guest was told to ask:\n" + history.String()
	m.leak = append(m.leak, v.goroutineLeaks(m)...)
	return m
}
