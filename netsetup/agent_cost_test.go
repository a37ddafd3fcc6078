package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

var costOf = flag.String("cost-of", "1,10", "the numbers of pods on a node whose cost TestCost measures")

// wirers are the processes that wire the pods of a node: an agent, or one for each pod.
type wirers struct {
	name string
	add  func(*testing.T, *podnet.Namespace)
	pids []int
}

// sidecars are imds-init in each pod.
func sidecars(program string) *wirers {
	w := &wirers{name: "sidecar"}
	w.add = func(t *testing.T, pod *podnet.Namespace) {
		process := exec.Command(program)
		log, err := os.Create(filepath.Join(t.TempDir(), "log"))
		must(t, err)
		process.Stderr = log
		must(t, pod.Start(process))
		must(t, log.Close())
		t.Cleanup(func() { process.Process.Kill(); process.Wait() })
		w.pids = append(w.pids, process.Process.Pid)
	}
	return w
}

// anAgent is that of a node.
func anAgent(t *testing.T, n *node) *wirers {
	n.startAgent(t)
	w := &wirers{name: "node-agent", pids: []int{n.process.Process.Pid}}
	pods := 0
	w.add = func(t *testing.T, pod *podnet.Namespace) {
		pods++
		handOver(t, n.addPod(t, fmt.Sprint("uid", pods)), pod)
	}
	return w
}

// wakeUps counts how often threads have run because something woke them.
func (w *wirers) wakeUps(t *testing.T) (total int) {
	t.Helper()
	for _, pid := range w.pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		must(t, err)
		for _, thread := range threads {
			content, err := os.ReadFile(thread)
			if err != nil {
				continue // it has ended
			}
			_, after, _ := strings.Cut(string(content), "\nvoluntary_ctxt_switches:")
			var times int
			fmt.Sscan(after, &times)
			total += times
		}
	}
	return total
}

// awaitIdle waits until nothing is done for a second.
func (w *wirers) awaitIdle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		before := w.wakeUps(t)
		time.Sleep(time.Second) // what is judged is that nothing happens
		woken := w.wakeUps(t) - before
		if woken == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wake-ups in a second, though nothing happens", woken)
		}
	}
}

// cost is what they take in all.
type cost struct{ threads, descriptors, kB int }

func (w *wirers) cost(t *testing.T) (c cost) {
	t.Helper()
	for _, pid := range w.pids {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(t, err)
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		must(t, err)
		c.threads, c.descriptors, c.kB = c.threads+len(tasks), c.descriptors+len(files), c.kB+memory(t, pid, "RssAnon")
	}
	return c
}

// plug makes what KubeVirt makes last: a bridge and then the guest's tap, and returns
// when that was.
func plug(t *testing.T, pod *podnet.Namespace) time.Time {
	t.Helper()
	bridge := netlink.NewLinkAttrs()
	bridge.Name = "k6t-eth0"
	must(t, pod.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: bridge}))
	master, err := pod.Netlink().LinkByName("k6t-eth0")
	must(t, err)
	must(t, pod.Netlink().LinkSetUp(master))
	began := time.Now()
	tap := netlink.NewLinkAttrs()
	tap.Name, tap.MasterIndex = "tap0", master.Attrs().Index
	must(t, pod.Do(func() error { return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: tap, Mode: netlink.TUNTAP_MODE_TAP}) }))
	return began
}

// awaitJoined returns how long ago it began that a pod's endpoint is on its bridge.
func awaitJoined(t *testing.T, pod *podnet.Namespace, began time.Time) time.Duration {
	t.Helper()
	for {
		port, err := pod.Netlink().LinkByName(wiring.Port)
		took := time.Since(began)
		if err == nil && port.Attrs().MasterIndex != 0 {
			return took
		}
		if took > time.Minute {
			t.Fatal("the endpoint is not on the bridge")
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// measure adds pods up to each number, and tells what they cost. How long wiring takes
// is told alone, with one pod after the other, and then of all that were added at once,
// which have lost their link.
func (w *wirers) measure(t *testing.T, numbers []int) (costs []cost) {
	var pods []*podnet.Namespace
	for _, many := range numbers {
		var added []*podnet.Namespace
		for len(pods)+len(added) < many {
			added = append(added, newNamespace(t))
			w.add(t, added[len(added)-1])
		}
		w.awaitIdle(t)
		var took []time.Duration
		for _, pod := range added {
			took = append(took, awaitJoined(t, pod, plug(t, pod)))
		}
		w.awaitIdle(t)
		began := time.Now()
		for _, pod := range added {
			port, err := pod.Netlink().LinkByName(wiring.Port)
			must(t, err)
			must(t, pod.Netlink().LinkDel(port))
		}
		var all time.Duration
		for _, pod := range added {
			all = awaitJoined(t, pod, began)
		}
		slices.Sort(took)
		pods = append(pods, added...)
		w.awaitIdle(t)
		full := w.cost(t)
		costs = append(costs, full)
		t.Logf("%s, %d pods: %d kB private, %d threads, %d descriptors, no wake-up in a second; from the tap to the bridge p50 %.1f ms, max %.1f ms; %d at once %.0f ms",
			w.name, many, full.kB, full.threads, full.descriptors,
			milliseconds(took[len(took)/2]), milliseconds(took[len(took)-1]), len(added), milliseconds(all))
	}
	return costs
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// What many pods on a node cost, in both ways of wiring. The figures are in the log;
// what fails is what would be wrong on any machine.
func TestCost(t *testing.T) {
	if !podnet.RealTaps() {
		podnet.Unavailable(t, fmt.Errorf("this user may not make taps"))
	}
	var numbers []int
	for _, text := range strings.Split(*costOf, ",") {
		number, err := strconv.Atoi(text)
		must(t, err)
		numbers = append(numbers, number)
	}
	program := filepath.Join(t.TempDir(), "imds-init")
	said, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	t.Run("sidecar", func(t *testing.T) { sidecars(program).measure(t, numbers) })
	t.Run("node-agent", func(t *testing.T) {
		n := newNode(t)
		n.program = program
		w := anAgent(t, n)
		w.awaitIdle(t)
		t.Logf("no pod: %+v", w.cost(t))
		costs := w.measure(t, numbers)
		first, last, pods := costs[0], costs[len(costs)-1], numbers[len(numbers)-1]
		each := func(first, last int) float64 { return float64(last-first) / float64(pods-numbers[0]) }
		if got := each(first.threads, last.threads); got > 1.2 {
			t.Errorf("%.1f threads for each further pod", got)
		}
		if got := each(first.descriptors, last.descriptors); got > 4 {
			t.Errorf("%.1f descriptors for each further pod", got)
		}
		if got := each(first.kB, last.kB); got > 400 {
			t.Errorf("%.0f kB for each further pod", got)
		}
		n.stopAgent(t, os.Interrupt)
		began := time.Now()
		n.startAgent(t)
		n.awaitCounts(t, func(c counts) bool { return c.Wired == pods })
		t.Logf("the agent's start with %d pods: all connected and looked at within %s, by its status file", pods, time.Since(began))
	})
}
