package checks

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testRunningPod is about one VM's pod that a kubelet runs, and the guest in it.
func (in *installation) testRunningPod(t *testing.T) {
	if !in.once {
		return
	}
	in.onVM(t, "running/order", "in a pod that runs, the sidecars start in order, before compute", startsInOrder(initContainer, serverContainer))
	in.onVM(t, "running/privileges", "imds-init has NET_ADMIN alone, imds-server nothing; seccomp, read-only roots", hasNoPrivilege)
	in.onVM(t, "running/guaranteed", "the kubelet keeps the pod Guaranteed, with the sidecars' limits in force", isGuaranteed)
	in.onVM(t, "running/inside", "the endpoint is there before the VM's network is", answersInside)
	in.onVM(t, "running/guest", "a guest is served once its bridge and tap are there", servesGuest)
	in.onVM(t, "running/identity", "the guest learns who it is", tellsIdentity)
	in.onVM(t, "running/token", "its token is accepted by a TokenReview, as its ServiceAccount's, bound to its pod", givesToken)
	in.onVM(t, "running/audience", "its token for another audience is accepted for that one alone", givesAudienceToken)
	in.onVM(t, "running/flood", "under a flood from the guest the liveness probe succeeds, and memory stays in its limit", survivesFlood)
	in.onVM(t, "running/killed-server", "imds-server, killed, is restarted and answers", survivesKillOfServer)
	in.onVM(t, "running/killed-init", "imds-init, killed, is restarted; the guest is served all the while", survivesKillOfInit)
	in.onVM(t, "running/end", "when compute ends, the pod completes", completes)
}

// onVM runs a check of the VM whose pod runs.
func (in *installation) onVM(t *testing.T, name, proves string, run func(*testing.T, *VM)) {
	in.check(t, name, proves, func(t *testing.T) {
		v, err := in.vm()
		check(t, err)
		t.Cleanup(func() {
			if t.Failed() {
				v.Explain(t)
			}
		})
		run(t, v)
	})
}

func answersInside(t *testing.T, v *VM) {
	if v.Ask != nil {
		t.Fatalf("the guest is there already")
	}
	_, err := v.fromPod().awaitAnswer(t.Context())
	check(t, err)
}

func servesGuest(t *testing.T, v *VM) {
	begin := time.Now()
	check(t, v.boot())
	booted := time.Since(begin)
	took, err := v.fromGuest().awaitAnswer(t.Context())
	check(t, err)
	t.Logf("first answer %d ms after bridge, NAT and tap (which took %d ms)", took.Milliseconds(), booted.Milliseconds())
}

// A sidecar is killed as the kernel does when memory is short.

func survivesKillOfServer(t *testing.T, v *VM) {
	check(t, v.boot())
	begin := time.Now()
	check(t, v.Kill(t.Context(), serverContainer, func() error { return nil }))
	awaitAnswerSince(t, v, begin)
}

func survivesKillOfInit(t *testing.T, v *VM) {
	check(t, v.boot())
	begin := time.Now()
	check(t, v.KillInit(t.Context(), func() error {
		_, err := v.Ask(t.Context(), "/healthz")
		return err
	}))
	awaitAnswerSince(t, v, begin)
}

func awaitAnswerSince(t *testing.T, v *VM, begin time.Time) {
	_, err := v.fromGuest().awaitAnswer(t.Context())
	check(t, err)
	t.Logf("restarted and answering after %.1f s", time.Since(begin).Seconds())
}

// completes ends compute as virt-launcher ends when its guest has powered off.
func completes(t *testing.T, v *VM) {
	pid, err := v.process(t.Context(), "compute")
	check(t, err)
	begin := time.Now()
	check(t, syscall.Kill(pid, syscall.SIGTERM))
	_, err = kube.Await(t.Context(), v.site.api, podsPath, v.pod.Name, patience, func(pod *corev1.Pod) string {
		if pod.Status.Phase == corev1.PodSucceeded {
			return ""
		}
		return "its phase is " + string(pod.Status.Phase)
	})
	check(t, err)
	t.Logf("after %.1f s", time.Since(begin).Seconds())
}

// startsInOrder compares when the first processes of the containers began.
func startsInOrder(ours ...string) func(*testing.T, *VM) {
	return func(t *testing.T, v *VM) {
		if want := slices.Concat([]string{"guest-console-log"}, ours, []string{"compute"}); !slices.Equal(v.Containers(), want) {
			t.Fatalf("the containers are %q, want %q", v.Containers(), want)
		}
		var last time.Time
		for _, name := range v.Containers() {
			pid, err := v.process(t.Context(), name)
			check(t, err)
			began, err := cluster.ProcessStart(pid)
			check(t, err)
			if began.Before(last) {
				t.Errorf("%s began before the one ahead of it", name)
			}
			last = began
		}
	}
}

// Sets of capabilities, as the kernel shows them (proc_pid_status(5)).
const (
	noCapability        = "0000000000000000"
	netAdmin            = "0000000000001000"
	netAdminAndSysAdmin = "0000000000201000"
)

func hasNoPrivilege(t *testing.T, v *VM) {
	for _, want := range []struct{ container, uids, groups, capabilities string }{
		{initContainer, "0 0 0 0", "0 107", netAdmin},
		{serverContainer, "65532 65532 65532 65532", "107 65532", noCapability},
	} {
		pid, err := v.process(t.Context(), want.container)
		check(t, err)
		checkPrivileges(t, want.container, pid, want.uids, want.groups, want.capabilities)
	}
}

// checkPrivileges reads what the kernel lets a process do.
func checkPrivileges(t *testing.T, name string, pid int, uids, groups, capabilities string) {
	status, err := cluster.ProcessStatus(pid)
	check(t, err)
	for line, value := range map[string]string{
		"Uid": uids, "Groups": groups,
		"CapBnd": capabilities, "CapPrm": capabilities, "CapEff": capabilities, "CapInh": noCapability, "CapAmb": noCapability,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[line] != value {
			t.Errorf("%s: %s is %q, want %q", name, line, status[line], value)
		}
	}
	all, err := mounts(pid)
	check(t, err)
	if !slices.Contains(all["/"], "ro") {
		t.Errorf("%s: its root is mounted %s, want ro", name, all["/"])
	}
}

// mounts are the options of a process's mounts, by their places (proc_pid_mountinfo(5)).
func mounts(pid int) (map[string][]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 5 {
			found[fields[4]] = strings.Split(fields[5], ",")
		}
	}
	return found, nil
}

func isGuaranteed(t *testing.T, v *VM) {
	if class := v.pod.Status.QOSClass; class != corev1.PodQOSGuaranteed {
		t.Errorf("its QoS class is %s", class)
	}
	for _, sidecar := range sidecars(v.pod) {
		c, err := v.container(t.Context(), sidecar.Name)
		check(t, err)
		memory, err := c.MemoryLimit()
		check(t, err)
		cpu, err := c.CPULimit()
		check(t, err)
		if want := int(sidecar.Resources.Limits.Memory().Value()); memory != want {
			t.Errorf("%s: %d bytes of memory are its limit, want %d", sidecar.Name, memory, want)
		}
		if want := int(sidecar.Resources.Limits.Cpu().MilliValue()); cpu != want {
			t.Errorf("%s: %dm of a CPU are its limit, want %dm", sidecar.Name, cpu, want)
		}
	}
}

const (
	floodClients = 200 // more than the server serves at once
	floodTime    = 10 * time.Second
)

// survivesFlood has the guest ask as fast as it can, each time by a new connection, and meanwhile does what the
// kubelet's liveness probe does.
func survivesFlood(t *testing.T, v *VM) {
	check(t, v.boot())
	v.logFigures(t, "before")
	ctx, stop := context.WithTimeout(t.Context(), floodTime)
	defer stop()
	var answers atomic.Int64
	var clients sync.WaitGroup
	for range floodClients {
		clients.Go(func() {
			for ctx.Err() == nil {
				if _, err := v.Ask(ctx, "/v1/token"); err == nil {
					answers.Add(1)
				}
			}
		})
	}
	probes, slowest := 0, time.Duration(0)
	for ctx.Err() == nil {
		begin := time.Now()
		if err := v.probe(t.Context()); err != nil {
			t.Errorf("the liveness probe fails: %v", err)
			break
		}
		probes, slowest = probes+1, max(slowest, time.Since(begin))
	}
	clients.Wait()
	v.logFigures(t, "after")
	t.Logf("%d answers to %d clients in %s; %d probes, the slowest took %d ms", answers.Load(), floodClients, floodTime, probes, slowest.Milliseconds())
	if answers.Load() == 0 {
		t.Errorf("the guest got no answer")
	}
	for _, sidecar := range sidecars(v.pod) {
		status, err := v.status(t.Context(), sidecar.Name)
		check(t, err)
		if status.RestartCount > 0 {
			t.Errorf("%s was restarted: %+v", sidecar.Name, status.LastTerminationState)
		}
	}
}

// probe runs imds-server's liveness probe in its container, as the kubelet does, and gives it as long.
func (v *VM) probe(ctx context.Context) error {
	all := sidecars(v.pod)
	server := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == serverContainer })
	liveness := all[server].LivenessProbe
	ctx, stop := context.WithTimeout(ctx, time.Duration(liveness.TimeoutSeconds)*time.Second)
	defer stop()
	command := append([]string{"exec", "--namespace=" + tenant, v.pod.Name, "--container=" + serverContainer, "--"}, liveness.Exec.Command...)
	_, err := v.site.kubectl(ctx, command...)
	return err
}

// logFigures says what the sidecars take.
func (v *VM) logFigures(t *testing.T, when string) {
	const mebibyte = 1 << 20
	for _, sidecar := range sidecars(v.pod) {
		c, err := v.container(t.Context(), sidecar.Name)
		check(t, err)
		working, err := c.WorkingSet()
		check(t, err)
		peak, err := c.MemoryPeak()
		check(t, err)
		throttled, err := c.ThrottledPeriods()
		check(t, err)
		t.Logf("%s, %s: working set %.1f MiB, peak %.1f MiB, throttled in %d periods",
			sidecar.Name, when, float64(working)/mebibyte, float64(peak)/mebibyte, throttled)
	}
}
