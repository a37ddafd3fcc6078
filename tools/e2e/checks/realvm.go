package checks

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// StartVM installs the product in a cluster that is there for this check alone, and starts a VM's pod, whose network
// is wired for masquerade binding. The guest is the caller's part, on the tap tap0 of that network.
func StartVM(t *suite.T, c *cluster.Cluster, out io.Writer) *VM {
	s, err := openSite(t.Context(), c, out)
	t.Check(err)
	t.Cleanup(func() { t.Check(s.close(context.WithoutCancel(t.Context()))) })
	in := newInstallation(t.Context(), s, kind)
	in.install().Run(t)
	v, err := in.vm()
	t.Check(err)
	t.Cleanup(func() { t.Check(v.close()) })
	t.Cleanup(func() {
		if t.Failed() {
			v.Explain(t)
		}
	})
	t.Check(v.network.Wire())
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
