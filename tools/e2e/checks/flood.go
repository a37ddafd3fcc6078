package checks

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

const (
	floodClients = 64
	floodTime    = 10 * time.Second
)

// survivesFlood has the guest ask as fast as it can, and meanwhile does what the kubelet's liveness probe does.
func survivesFlood(t *suite.T, v *vmPod) {
	t.Check(v.boot())
	v.logFigures(t, "idle")
	ctx, stop := context.WithTimeout(t.Context(), floodTime)
	defer stop()
	var answers atomic.Int64
	var clients sync.WaitGroup
	for range floodClients {
		clients.Go(func() {
			for ctx.Err() == nil {
				if _, err := v.fromGuest().ask(ctx, "/v1/token"); err == nil {
					answers.Add(1)
				}
			}
		})
	}
	probes, slowest := 0, time.Duration(0)
	for ctx.Err() == nil {
		begin := time.Now()
		err := v.probe(t.Context())
		took := time.Since(begin)
		if err != nil {
			t.Errorf("the probe fails after %d ms: %v", took.Milliseconds(), err)
			break
		}
		probes, slowest = probes+1, max(slowest, took)
	}
	clients.Wait()
	v.logFigures(t, "flooded")
	t.Logf("%d answers in %s; %d probes, the slowest took %d ms", answers.Load(), floodTime, probes, slowest.Milliseconds())
	if answers.Load() == 0 {
		t.Errorf("the guest got no answer")
	}
}

// probe runs the liveness probe's command in the container, as the kubelet does.
func (v *vmPod) probe(ctx context.Context) error {
	for _, sidecar := range sidecars(v.pod) {
		if sidecar.LivenessProbe == nil {
			continue
		}
		limit := time.Duration(sidecar.LivenessProbe.TimeoutSeconds) * time.Second
		ctx, stop := context.WithTimeout(ctx, limit)
		defer stop()
		args := append([]string{"exec", "--namespace=" + vmNamespace, v.pod.Name, "--container=" + sidecar.Name, "--"}, sidecar.LivenessProbe.Exec.Command...)
		if _, err := v.site.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// logFigures says what the sidecars take.
func (v *vmPod) logFigures(t *suite.T, when string) {
	for _, sidecar := range sidecars(v.pod) {
		c, err := v.container(t.Context(), sidecar.Name)
		t.Check(err)
		working, err := c.WorkingSet()
		t.Check(err)
		peak, err := c.MemoryPeak()
		t.Check(err)
		throttled, err := c.ThrottledPeriods()
		t.Check(err)
		const mebibyte = 1 << 20
		t.Logf("%s, %s: working set %.1f MiB, peak %.1f MiB, throttled in %d periods",
			sidecar.Name, when, float64(working)/mebibyte, float64(peak)/mebibyte, throttled)
	}
}
