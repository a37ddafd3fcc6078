package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// agentPod is a pod whose server has handed it over to the agent.
type agentPod struct {
	*podnet.Pod
	uid    string
	server *standIn
	guest  string // its address
}

// newAgentPod makes a pod that the agent has given an endpoint, and no guest yet.
func newAgentPod(t *testing.T, n *node, uid string, options podnet.Options) agentPod {
	t.Helper()
	pod := newPod(t, options)
	server := handOver(t, n.addPod(t, uid), pod.Pod)
	server.await(t, stateWaiting, "a bridge named k6t-*")
	return agentPod{pod, uid, server, guestOf(options)}
}

// serveGuest starts the pod's guest, and returns when it is served.
func (p agentPod) serveGuest(t *testing.T) {
	t.Helper()
	serve(t, p.Pod)
	must(t, p.Wire())
	must(t, p.StartGuest())
	p.server.await(t, stateWired, "")
	mustServe(t, p.Pod, p.guest)
}

// unplugEndpoint takes the endpoint off the bridge.
func (p agentPod) unplugEndpoint(t *testing.T) {
	t.Helper()
	must(t, p.Pod.Pod.Netlink().LinkSetNoMaster(link(t, p.Pod, wiring.Port)))
}

// awaitPlugged waits until the endpoint is on a bridge. It looks again and again: of a
// pod that has had many repairs the log tells no more.
func (p agentPod) awaitPlugged(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); link(t, p.Pod, wiring.Port).Attrs().MasterIndex == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the endpoint is on no bridge")
		}
	}
}

func TestAgentServesEachBinding(t *testing.T) {
	n := runningNode(t)
	var pods []agentPod
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge, podnet.ManagedTap} {
		pods = append(pods, newAgentPod(t, n, "uid-"+string(binding), podnet.Options{Binding: binding}))
	}
	for _, pod := range pods {
		pod.serveGuest(t)
		n.waitForAll(t, "msg=wired", "uid="+pod.uid, "namespace=tenant pod=virt-launcher-vm vm=vm")
	}
	n.awaitCounts(t, func(c counts) bool { return c.Wired == len(pods) && len(c.Waiting)+len(c.Failed) == 0 })
	for _, pod := range pods {
		pod.unplugEndpoint(t)
		n.waitForAll(t, "msg=repaired", "uid="+pod.uid)
		mustServe(t, pod.Pod, pod.guest)
	}
}

// What the agent did stays without it, and what breaks meanwhile is repaired when it
// is back.
func TestAgentIsKilledAndStartedAgain(t *testing.T) {
	n := runningNode(t)
	pod := newAgentPod(t, n, "uid", podnet.Options{Binding: podnet.Bridge})
	pod.serveGuest(t)
	for _, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		n.stopAgent(t, signal)
		mustServe(t, pod.Pod, pod.guest)
		pod.unplugEndpoint(t)
		n.startAgent(t)
		pod.server.await(t, stateWired, "")
		mustServe(t, pod.Pod, pod.guest)
	}
}

func TestServerIsStartedAgain(t *testing.T) {
	n := runningNode(t)
	pod := newAgentPod(t, n, "uid", podnet.Options{Binding: podnet.Masquerade})
	pod.serveGuest(t)
	for range 2 * connectionsAtOnce / 3 {
		pod.server.close()
		n.awaitOutside(t, pod.Pod.Pod)
		mustServe(t, pod.Pod, pod.guest)
		pod.server = handOver(t, n.volume(pod.uid), pod.Pod.Pod)
		pod.server.await(t, stateWired, "")
	}
}

// Deleting a pod is not held up: the agent lets go when its folder goes, though
// somebody holds the connection.
func TestPodIsDeleted(t *testing.T) {
	n := runningNode(t)
	pod := newAgentPod(t, n, "uid", podnet.Options{Binding: podnet.Masquerade})
	pod.serveGuest(t)
	must(t, os.RemoveAll(filepath.Join(n.folder, pod.uid)))
	n.awaitOutside(t, pod.Pod.Pod)
	n.awaitCounts(t, func(c counts) bool { return c.Wired == 0 && len(c.Waiting)+len(c.Failed) == 0 })
}

// A pod is found whether it was there before the agent or comes after, whichever part
// of it comes last; the others are left alone.
func TestAgentFindsPods(t *testing.T) {
	n := newNode(t)
	network := func() *podnet.Namespace {
		namespace, err := podnet.NewNamespace("pod")
		must(t, err)
		t.Cleanup(func() { namespace.Close() })
		return namespace
	}
	ready := handOver(t, n.addPod(t, "before-with-socket"), network())
	before := n.addPod(t, "before")
	must(t, os.MkdirAll(filepath.Join(n.folder, "not-ours", "containers"), 0o755))
	must(t, os.WriteFile(filepath.Join(n.folder, "a-file"), nil, 0o644))
	unfinished := n.volume("unfinished")
	must(t, os.MkdirAll(unfinished, 0o777))
	n.startAgent(t)
	ready.await(t, stateWaiting, "a bridge")
	handOver(t, before, network()).await(t, stateWaiting, "a bridge")
	must(t, os.Mkdir(filepath.Join(n.folder, "unfinished", containersFolder), 0o755))
	handOver(t, unfinished, network()).await(t, stateWaiting, "a bridge")
	handOver(t, n.addPod(t, "after"), network()).await(t, stateWaiting, "a bridge")
	n.awaitCounts(t, func(c counts) bool { return c.Waiting["a bridge named k6t-*"] == 4 && len(c.Failed) == 0 })
}

// Pods that do not ask cost one watch in all, once they have their volumes.
func TestManyPodsThatDoNotAsk(t *testing.T) {
	n := newNode(t)
	make := func(from, to int) {
		for at := from; at < to; at++ {
			must(t, os.MkdirAll(filepath.Join(n.folder, fmt.Sprint("other", at), "volumes", "kubernetes.io~empty-dir", "data"), 0o755))
			must(t, os.Mkdir(filepath.Join(n.folder, fmt.Sprint("other", at), containersFolder), 0o755))
		}
	}
	make(0, 250)
	n.startAgent(t)
	make(250, 500)
	newAgentPod(t, n, "honest", podnet.Options{}).serveGuest(t)
	(&wirers{pids: []int{n.process.Process.Pid}}).awaitIdle(t)
	descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", n.process.Process.Pid))
	must(t, err)
	watches := 0
	for _, descriptor := range descriptors {
		content, err := os.ReadFile(descriptor)
		must(t, err)
		watches += strings.Count(string(content), "inotify wd:")
	}
	if watches != 2 {
		t.Errorf("%d watches, want that of the folder of the pods, and that of the volumes of the one that asks", watches)
	}
}

// More events than the kernel keeps: the agent looks at all that is there.
func TestEventsAreLost(t *testing.T) {
	n := newNode(t)
	content, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var most int
	_, err = fmt.Sscan(string(content), &most)
	must(t, err)
	n.startAgent(t)
	gone := newAgentPod(t, n, "gone", podnet.Options{})
	late, lateNetwork := n.addPod(t, "late"), newNamespace(t)
	n.awaitCounts(t, func(c counts) bool { return c.Waiting["imds-server does not listen on its socket yet"] == 1 })
	must(t, n.process.Process.Signal(syscall.SIGSTOP))
	file := filepath.Join(n.folder, "a-file")
	for range most { // two events each: equal ones are not merged, since they alternate
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Remove(file))
	}
	must(t, os.RemoveAll(filepath.Join(n.folder, gone.uid)))
	pod := newPod(t, podnet.Options{})
	server := handOver(t, n.addPod(t, "unheard"), pod.Pod)
	lateServer := handOver(t, late, lateNetwork)
	must(t, n.process.Process.Signal(syscall.SIGCONT))
	server.await(t, stateWaiting, "a bridge")
	lateServer.await(t, stateWaiting, "a bridge")
	n.awaitOutside(t, gone.Pod.Pod)
}

// What is mounted below the folder of the pods is taken away from the agent, where its
// mounts are its own, and nowhere else.
func TestAgentDetachesOtherPodsVolumes(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprintf("own=%t", own), func(t *testing.T) {
			n := newNode(t)
			secret := filepath.Join(n.folder, "other", "volumes", "kubernetes.io~secret", "secret")
			must(t, os.MkdirAll(secret, 0o755))
			process := exec.Command("/proc/self/exe", "agent")
			process.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			env := []string{mountAt + "=" + secret}
			if !own {
				env = append(env, asParent+"=1")
			}
			n.start(t, process, env...)
			n.waitFor(t, fmt.Sprintf("detached=%d", map[bool]int{true: 1}[own]))
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", process.Process.Pid))
			must(t, err)
			if there := strings.Contains(string(mounts), "kubernetes.io~secret"); there == own {
				t.Errorf("the volume is there: %t\n%s", there, mounts)
			}
		})
	}
}

func TestAgentWithoutAFolderOfPods(t *testing.T) {
	podnet.Require(t)
	var log strings.Builder
	missing := filepath.Join(t.TempDir(), "missing")
	status := run(t.Context(), []string{"agent"}, func(name string) string { return map[string]string{"IMDS_PODS_DIR": missing}[name] }, io.Discard, &log)
	if status != exitFailed || !strings.Contains(log.String(), "give the folder in which this node's kubelet has its pods") {
		t.Errorf("status %d: %s", status, &log)
	}
}

// Whatever the pods do, the log is bounded in all, and says what is not in it.
func TestLogOfTheAgentIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written strings.Builder
		log := slog.New(slog.NewTextHandler(&boundedLog{to: &written, lines: newAllowance(agentLinesAtOnce, agentLineEvery, time.Now())}, nil))
		for range 2 * agentLinesAtOnce {
			log.Info("line")
		}
		if lines := strings.Count(written.String(), "\n"); lines != agentLinesAtOnce {
			t.Errorf("%d lines, want %d", lines, agentLinesAtOnce)
		}
		time.Sleep(agentLineEvery)
		log.Info("later")
		if want := fmt.Sprintf("lines=%d\n", agentLinesAtOnce); !strings.Contains(written.String(), want) || !strings.HasSuffix(written.String(), "msg=later\n") {
			t.Errorf("the log ends in %q", written.String()[written.Len()-200:])
		}
	})
}

// The status file is written at most once a second, and has no more reasons than a
// reader wants.
func TestStatusIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &status{file: filepath.Join(t.TempDir(), "status"), report: reporter{log: slog.New(slog.DiscardHandler), now: time.Now}, pods: map[string]progress{}}
		var last os.FileInfo
		writes := 0
		for at := range 5000 {
			s.set(fmt.Sprint("uid", at%100), &progress{stateFailed, fmt.Sprint("reason", at), byWiring})
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if now, err := os.Stat(s.file); err == nil && (last == nil || !os.SameFile(last, now)) {
				last, writes = now, writes+1
			}
		}
		time.Sleep(statusEvery)
		synctest.Wait()
		if writes < 4 || writes > 6 {
			t.Errorf("%d writes in 5 s", writes)
		}
		content, err := os.ReadFile(s.file)
		must(t, err)
		var have counts
		must(t, json.Unmarshal(content, &have))
		if len(have.Failed) != 11 || have.Failed["other"] != 90 {
			t.Errorf("the file has %s", content)
		}
	})
}

// What the node lacks for the agent is told, and is no reason that a sidecar fails.
func TestCheckTellsWhetherAnAgentCanEnter(t *testing.T) {
	pod := newPod(t, podnet.Options{})
	output, err := newInit(t, pod, onThisKernel).Exec(t.Context(), "/imds-init", "check")
	if want := "missing  entering another network namespace"; err != nil || !strings.Contains(output, want) {
		t.Errorf("as the sidecar: %v, %s; want %q in it", err, output, want)
	}
	var table strings.Builder
	must(t, pod.Pod.Do(func() error { check(&table); return nil }))
	if want := "ok  entering another network namespace"; !strings.Contains(strings.Join(strings.Fields(table.String()), "  "), strings.Join(strings.Fields(want), "  ")) {
		t.Errorf("as the agent:\n%s", &table)
	}
}

// A folder that is not the kubelet's has no folder of the agent's own pod.
func TestFolderThatIsNotTheKubelets(t *testing.T) {
	podnet.Require(t)
	variables := map[string]string{"IMDS_PODS_DIR": t.TempDir(), "IMDS_POD_UID": "f00d"}
	var log strings.Builder
	status := run(t.Context(), []string{"agent"}, func(name string) string { return variables[name] }, io.Discard, &log)
	if status != exitFailed || !strings.Contains(log.String(), "has no folder of this pod, f00d") {
		t.Errorf("status %d: %s", status, &log)
	}
}

// The kubelet takes the volumes of a pod that has ended, and leaves its folder as long
// as the pod's object is there. Such a pod is none that failed.
func TestPodThatHasEnded(t *testing.T) {
	n := runningNode(t)
	pod := newAgentPod(t, n, "uid", podnet.Options{})
	pod.serveGuest(t)
	must(t, os.Rename(n.volume("uid"), n.folder+".volume"))
	t.Cleanup(func() { os.RemoveAll(n.folder + ".volume") })
	pod.server.close()
	n.awaitCounts(t, func(c counts) bool { return c.Wired == 0 && len(c.Waiting)+len(c.Failed) == 0 })
	n.awaitOutside(t, pod.Pod.Pod)
	for _, line := range n.said() {
		if strings.Contains(line, "level=ERROR") {
			t.Errorf("the log has %s", line)
		}
	}
}

func TestStatusIsPrinted(t *testing.T) {
	n := runningNode(t)
	newAgentPod(t, n, "uid", podnet.Options{}).serveGuest(t)
	n.awaitCounts(t, func(c counts) bool { return c.Wired == 1 })
	var out, errs strings.Builder
	status := run(t.Context(), []string{"status"}, func(string) string { return n.status }, &out, &errs)
	if status != exitOK || !strings.HasPrefix(out.String(), `{"wired":1,`) {
		t.Errorf("status %d: %s%s", status, &out, &errs)
	}
	if status := run(t.Context(), []string{"status"}, func(string) string { return "" }, &out, &errs); status != exitFailed || !strings.Contains(errs.String(), "run it in a container of the agent") {
		t.Errorf("without a file: %d: %s", status, &errs)
	}
}
