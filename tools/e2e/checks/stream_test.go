package checks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

const (
	// streamPause is between two admissions of a stream: many for every step of a roll-out.
	streamPause = 20 * time.Millisecond
	// streamRest is how long a stream goes on after all is done: somebody may still act on it.
	streamRest = time.Second
)

// duringAdmissions does something while pods and VMs are admitted, steadily and in turn. Each of them must be.
func (in *installation) duringAdmissions(t *testing.T, do func(context.Context) error) {
	pod := launcherPod(t, in.site, "masquerade")
	vm := newVM("streamed", "masquerade", map[string]string{enabledAnnotation: "true"})
	admissions := []func(context.Context) error{
		func(ctx context.Context) error {
			stored, err := in.admit(ctx, pod)
			if err == nil && len(sidecars(stored)) != 2 {
				err = errors.New("a pod is stored without its sidecars")
			}
			return err
		},
		func(ctx context.Context) error {
			stored, err := kube.DryRun(ctx, in.api, virtualMachinesPath, vm)
			if err == nil && stored.Spec.Template.Metadata.Annotations[enabledAnnotation] != "true" {
				err = errors.New("a VM is stored without the annotation in its template")
			}
			return err
		},
	}

	end := make(chan struct{})
	var failures []string
	var slowest time.Duration
	admitted := 0
	begin := time.Now()
	var stream sync.WaitGroup
	stream.Go(func() {
		ticker := time.NewTicker(streamPause)
		defer ticker.Stop()
		for i := 0; ; i++ {
			asked := time.Now()
			if err := admissions[i%len(admissions)](t.Context()); err != nil {
				failures = append(failures, fmt.Sprintf("%5.2f s: %v", asked.Sub(begin).Seconds(), err))
			} else {
				admitted++
			}
			slowest = max(slowest, time.Since(asked))
			select {
			case <-ticker.C:
			case <-end:
				return
			}
		}
	})
	err := do(t.Context())
	if err == nil {
		time.Sleep(streamRest)
	}
	close(end)
	stream.Wait()

	check(t, err)
	t.Logf("%d admissions in %.1f s, the slowest took %d ms", admitted, time.Since(begin).Seconds(), slowest.Milliseconds())
	if len(failures) > 0 {
		t.Errorf("%d failed:\n%s", len(failures), strings.Join(failures[:min(len(failures), 5)], "\n"))
	}
}
