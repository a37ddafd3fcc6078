// Package guests proves with real guest kernels that a VM finds its metadata, in every binding and through every
// accident, and that nobody else does.
//
// A subject, such as a binding, an accident or an attack, is a row of the table of its group, which its name begins
// with; each of its checks is a column. The bindings, attacks and accidents are packages with many subjects each, and
// lists of them to add to; the others are in [subjects]. A check makes the VM that it is about by package stage, whose
// documentation shows the steps, and tells what it measures by T.Figure. It ends with everything gone, so that their
// order does not matter; what it waits for is an event, or a condition asked for in the guest.
package guests

import (
	"context"
	"errors"
	"io"
	"regexp"
	"sync"

	"github.com/example/kubevirt-imds/tools/e2e/guests/accidents"
	"github.com/example/kubevirt-imds/tools/e2e/guests/attacks"
	"github.com/example/kubevirt-imds/tools/e2e/guests/bindings"
	"github.com/example/kubevirt-imds/tools/e2e/guests/kubelet"
	"github.com/example/kubevirt-imds/tools/e2e/guests/migration"
	"github.com/example/kubevirt-imds/tools/e2e/guests/node"
	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// subjects are those that are alone in their ways.
var subjects = []struct {
	name   string
	checks func(*stage.Stage) []suite.Check
}{
	{"smoke/guest", smokeChecks},
	{"migration/masquerade", migration.Masquerade},
	{"migration/bridge", migration.Bridge},
	{"node/no nf_tables", node.WithoutNFTables},
	{"node/clock that jumps", node.ClockJumps},
	{"kubelet/guest", kubelet.Checks},
}

// Run runs the checks whose names, such as bindings/bridge/served, match the filter. out gets the lines of go test -v and
// the tables, progress what takes long before.
func Run(ctx context.Context, filter *regexp.Regexp, out, progress io.Writer) (err error) {
	s, err := stage.Open(ctx, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	results := suite.New(out, filter, suite.BySubject)
	var beside sync.WaitGroup
	beside.Go(func() { accidents.RunLong(ctx, s, results) })
	defer beside.Wait()
	for _, subject := range subjects {
		for _, check := range subject.checks(s) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			results.Run(ctx, subject.name, []suite.Check{check})
		}
	}
	bindings.Run(ctx, s, results)
	attacks.Run(ctx, s, results)
	accidents.Run(ctx, s, results)
	beside.Wait()
	return results.Finish()
}
