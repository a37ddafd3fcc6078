// Package accidents proves with real guests that whatever happens in a VM's pod is over in less than a second: the
// guest asks ten times a second all the while, and counts.
//
// A row of the table is an accident in a binding. Its columns are judged on one and the same run of the accident:
//
//	lost  requests without a good answer, but for those that the end of a process or of a device made unavoidable
//	gap   the longest time without a good answer, by the guest's clock
//	heal  from the accident, or from when the kernel tells of it, until all is as it was
//	leak  what is left of it: links, addresses, routes, rules, file descriptors
package accidents

import (
	"context"
	"sync"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Run has what is over at once happen: in each binding one accident after the other to one guest.
func Run(ctx context.Context, s *stage.Stage, results *suite.Suite) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		runStory(ctx, s, results, binding)
	}
}

// RunLong has what takes minutes happen, each to a guest of its own that does little meanwhile: it is meant to run
// beside other checks.
func RunLong(ctx context.Context, s *stage.Stage, results *suite.Suite) {
	var all sync.WaitGroup
	for _, long := range []*alone{guestPaused(s), tokenRotated(s)} {
		all.Go(func() { long.run(ctx, results) })
	}
	all.Wait()
}
