package stage

import (
	"context"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
)

// Ask has the guest ask for a path many times a second, until Stop.
func (v *VM) Ask(path string, rate int) *guestagent.Task[guestagent.Asked] {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	task, err := v.Guest.Agent.Ask(ctx, guestagent.Ask{Get: guestagent.Get{URL: MetadataURL + path}, Rate: rate})
	Check(v.t, err)
	return task
}

// Stop ends the asking and returns its report, after the last request's answer or time limit. Of a guest that has
// migrated it is the target's VM that is told to stop.
func (v *VM) Stop(asking *guestagent.Task[guestagent.Asked]) guestagent.Asked {
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	asked, err := asking.Stop(ctx)
	Check(v.t, err)
	return asked
}

// AwaitAnswers returns when the guest, asked for it, has got that many good answers one after the other, so that
// what asks beside it has had the time to.
func (v *VM) AwaitAnswers(n int) {
	for range n {
		if got := v.Get("/healthz"); got.Status != 200 {
			v.t.Fatalf("GET /healthz: status %d, %s: %s", got.Status, got.Failure, got.Detail)
		}
	}
}
