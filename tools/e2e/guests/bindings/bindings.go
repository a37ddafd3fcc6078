// Package bindings proves that a guest is served in every way in which KubeVirt joins a VM to a network, and that the
// VM's own network is as if nobody had.
//
// A row is a VM with one guest, which boots once; its columns are what is proved of it, in their order. A row is
// added to [rows], a column to [scene.columns].
package bindings

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// guestsAtOnce is how many guests run at a time. Each keeps a processor busy while it boots.
const guestsAtOnce = 2

// Run plays the rows that are selected.
func Run(ctx context.Context, s *stage.Stage, results *suite.Suite) {
	var playing errgroup.Group
	playing.SetLimit(guestsAtOnce)
	for _, r := range rows {
		results.Announce(r.name())
	}
	for _, r := range rows {
		playing.Go(func() error {
			r.play(ctx, s, results)
			return nil
		})
	}
	playing.Wait()
}

// play makes the row's VM, proves the columns in it, and then that its uplinks were clean all the time.
func (r row) play(ctx context.Context, s *stage.Stage, results *suite.Suite) {
	sc := &scene{row: r}
	uplink := suite.Check{
		Name:   "uplink",
		Proves: "no frame of the project's is on the pod's uplinks, from before the wiring to the end; frames captured",
		Run: func(t *suite.T) {
			// After the captures have ended.
			t.Cleanup(func() {
				if sc.vm != nil {
					t.Figure("%d frames", sc.vm.Frames)
				}
			})
			sc.set(t, s)
			results.Run(t.Context(), r.name(), sc.columns())
		},
	}
	if ctx.Err() == nil && results.Selects(r.name(), append(sc.columns(), uplink)) {
		results.Must(ctx, r.name(), uplink)
	}
}

// name is the subject's in the sum.
func (r row) name() string { return "bindings/" + r.subject }
