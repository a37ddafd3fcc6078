package checks

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

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
