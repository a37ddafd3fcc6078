package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// wakeUps counts how often threads of the agent have run because something woke them.
func (n *node) wakeUps(t *testing.T) (total int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.process.Process.Pid))
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
	return total
}

// awaitIdle waits until the agent does nothing for a second.
func (n *node) awaitIdle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		before := n.wakeUps(t)
		time.Sleep(time.Second) // what is judged is that nothing happens
		woken := n.wakeUps(t) - before
		if woken == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent woke up %d times in a second, though nothing happens", woken)
		}
	}
}

// barePod is a network namespace with what KubeVirt makes last: a bridge and a tap.
type barePod struct {
	*podnet.Namespace
	server *standIn
}

// plug makes the bridge, and then the guest's tap, and returns when that was.
func (p barePod) plug(t *testing.T) time.Time {
	t.Helper()
	bridge := netlink.NewLinkAttrs()
	bridge.Name = "k6t-eth0"
	must(t, p.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: bridge}))
	master, err := p.Netlink().LinkByName("k6t-eth0")
	must(t, err)
	must(t, p.Netlink().LinkSetUp(master))
	began := time.Now()
	tap := netlink.NewLinkAttrs()
	tap.Name, tap.MasterIndex = "tap0", master.Attrs().Index
	must(t, p.Do(func() error { return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: tap, Mode: netlink.TUNTAP_MODE_TAP}) }))
	return began
}

// One agent for many pods: what each costs. The figures are in the log; what fails is
// what would be wrong on any machine. How long it takes is told alone, and of all pods
// at once.
func TestCostOfAnAgent(t *testing.T) {
	if !podnet.RealTaps() {
		podnet.Unavailable(t, fmt.Errorf("this user may not make taps"))
	}
	n := newNode(t)
	n.program = filepath.Join(t.TempDir(), "imds-init")
	said, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", n.program, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	n.startAgent(t)
	n.awaitIdle(t)
	pid := n.process.Process.Pid
	var pods []barePod
	tell := func() (threads, descriptors, kB int) {
		n.awaitIdle(t)
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(t, err)
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		must(t, err)
		t.Logf("%d pods: RSS %d kB, of it private %d kB, %d threads, %d descriptors, %s of CPU in all", len(pods),
			memory(t, pid, "VmRSS"), memory(t, pid, "RssAnon"), len(tasks), len(files), n.cpuTime(t))
		return len(tasks), len(files), memory(t, pid, "RssAnon")
	}
	threads, descriptors, kB := tell()
	for _, many := range []int{1, 10, 100} {
		added := []barePod{}
		for len(pods)+len(added) < many {
			namespace := newNamespace(t)
			server := handOver(t, n.addPod(t, fmt.Sprint("uid", len(pods)+len(added))), namespace)
			server.await(t, stateWaiting, "a bridge named")
			added = append(added, barePod{namespace, server})
		}
		n.awaitIdle(t)
		var took []time.Duration
		for _, pod := range added { // one by one
			began := pod.plug(t)
			pod.server.await(t, stateWired, "")
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("from the tap to wired, one by one: p50 %s, max %s", took[len(took)/2], took[len(took)-1])
		pods = append(pods, added...)
		tell()
	}
	nowThreads, nowDescriptors, nowKB := tell()
	if each := float64(nowThreads-threads) / float64(len(pods)); each > 1.2 {
		t.Errorf("%.1f threads for each pod", each)
	}
	if each := float64(nowDescriptors-descriptors) / float64(len(pods)); each > 4 {
		t.Errorf("%.1f descriptors for each pod", each)
	}
	if each := (nowKB - kB) / len(pods); each > 400 {
		t.Errorf("%d kB for each pod", each)
	}

	// All at once lose what the agent made.
	began := time.Now()
	for _, pod := range pods {
		port, err := pod.Netlink().LinkByName(wiring.Port)
		must(t, err)
		must(t, pod.Netlink().LinkDel(port))
	}
	var took []time.Duration
	for _, pod := range pods {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			port, err := pod.Netlink().LinkByName(wiring.Port)
			if err == nil && port.Attrs().MasterIndex != 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a pod is not repaired")
			}
		}
		took = append(took, time.Since(began))
	}
	t.Logf("%d pods at once: all repaired within %s", len(pods), took[len(took)-1])
	n.stopAgent(t, os.Interrupt)
	began = time.Now()
	n.startAgent(t)
	for _, pod := range pods {
		pod.server.await(t, stateWired, "")
	}
	t.Logf("the agent's start with %d pods: all connected and looked at within %s", len(pods), time.Since(began))
}
