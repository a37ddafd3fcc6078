// Package guests proves with real guest kernels that a VM finds its metadata, in every binding and through every
// accident, and that nobody else does.
//
// How to add one: a subject, such as a binding or a kind of attack, is a package in this folder, or a file here, that
// exports a function of the type in [columns], and a line there. It is a row of the table. Each of its checks is a
// [suite.Check]: its Name is the column, and how -run finds it; its Run makes the VM that it is about by package
// stage, whose documentation shows the steps; what it measures it tells by T.Figure. A check ends with everything
// gone, so that their order does not matter; what it waits for is an event, or a condition asked for in the guest.
//
// The bindings are different: package bindings has many rows, each with one VM for all of its columns.
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

// columns are all that there is to check, in the order in which it is.
var columns = []struct {
	name   string
	checks func(*stage.Stage) []suite.Check
}{
	{"smoke", smokeChecks},
	{"migration-masquerade", migration.Masquerade},
	{"migration-bridge", migration.Bridge},
	{"no-nf_tables", node.WithoutNFTables},
	{"node-clock", node.ClockJumps},
	{"kubelet", kubelet.Checks},
}

// Run runs the checks whose names, such as smoke/token, match the filter. out gets the lines of go test -v and the
// table, progress what takes long before.
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
	for _, column := range columns {
		for _, check := range column.checks(s) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			results.Run(ctx, column.name, []suite.Check{check})
		}
	}
	bindings.Run(ctx, s, results)
	attacks.Run(ctx, s, results)
	accidents.Run(ctx, s, results)
	beside.Wait()
	return results.Finish()
}
