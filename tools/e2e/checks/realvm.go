package checks

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// StartVM installs the product in a cluster that is there for this check alone, and starts a VM's pod, whose network
// is wired for masquerade binding. The guest is the caller's part, on the tap tap0 of that network.
func StartVM(t *testing.T, c *cluster.Cluster, out io.Writer) *VM {
	s, err := openSite(t.Context(), c, out)
	check(t, err)
	t.Cleanup(func() { check(t, s.close(context.WithoutCancel(t.Context()))) })
	in := newInstallation(t.Context(), s, kind)
	in.install(t)
	v, err := in.vm()
	check(t, err)
	t.Cleanup(func() { check(t, v.close()) })
	t.Cleanup(func() {
		if t.Failed() {
			v.Explain(t)
		}
	})
	check(t, v.network.Wire())
	return v
}

// Process is the first process of a container that runs now, as the machine numbers it.
func (v *VM) Process(ctx context.Context, container string) (int, error) {
	return v.process(ctx, container)
}

// Containers are the names of those that end in this order when the pod is deleted: the VM's own, and then the
// sidecars, the last first.
var Containers = []string{"compute", serverContainer, initContainer, "guest-console-log"}

// Delete deletes the pod and returns when each of Containers had ended.
func (v *VM) Delete(ctx context.Context) ([]time.Time, error) {
	var processes []unix.PollFd
	for _, name := range Containers {
		pid, err := v.process(ctx, name)
		if err != nil {
			return nil, err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, fmt.Errorf("process of %s: %w", name, err)
		}
		defer unix.Close(fd)
		processes = append(processes, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if err := v.site.api.Delete(ctx, podsPath+"/"+v.pod.Name); err != nil {
		return nil, err
	}
	return awaitEnds(processes)
}

// endTime is how long that may take: the kubelet, whose watch of its pods has failed while the API server was away,
// rests for up to a minute before it tries again.
const endTime = 3 * time.Minute

// awaitEnds returns when each process had ended, by its file descriptor.
func awaitEnds(processes []unix.PollFd) ([]time.Time, error) {
	ends := make([]time.Time, len(processes))
	for left := len(processes); left > 0; {
		n, err := unix.Poll(processes, int(endTime.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("%d containers have not ended within %s", left, endTime)
		}
		for i := range processes {
			if processes[i].Fd >= 0 && processes[i].Revents != 0 {
				ends[i] = time.Now()
				processes[i].Fd = -1 // poll(2) leaves it out
				left--
			}
		}
	}
	return ends, nil
}

// Kill kills a container, does something at once, and returns when the kubelet has restarted it.
func (v *VM) Kill(ctx context.Context, name string, atOnce func() error) error {
	before, err := v.status(ctx, name)
	if err != nil {
		return err
	}
	pid, err := v.process(ctx, name)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := atOnce(); err != nil {
		return err
	}
	_, err = kube.Await(ctx, v.site.api, podsPath, v.pod.Name, patience, func(pod *corev1.Pod) string {
		status, err := statusOf(pod, name)
		switch {
		case err != nil:
			return err.Error()
		case status.RestartCount == before.RestartCount || status.State.Running == nil:
			return fmt.Sprintf("%s is not restarted: %+v", name, status.State)
		}
		return runningLacks(pod)
	})
	return err
}

// Explain shows the state of the pod and what its sidecars have logged.
func (v *VM) Explain(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{initContainer, serverContainer} {
		status, err := v.status(ctx, name)
		t.Logf("%s: %d restarts, %+v (%v)", name, status.RestartCount, status.State, err)
		log, err := v.log(ctx, name)
		t.Logf("%s (%v)", strings.TrimSpace(log), err)
	}
}
