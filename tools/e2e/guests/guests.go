// Package guests proves with real guest kernels that a VM finds its metadata, in every binding and through every
// accident, and that nobody else does.
//
// Each column of the table is a package or a file of its own that returns checks; [columns] lists them. A check
// makes the VM that it is about by package stage, and tells its figures by T.Logf.
package guests

import (
	"context"
	"errors"
	"io"
	"regexp"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// columns are all that there is to check, in the order in which it is.
var columns = []struct {
	name   string
	checks func(*stage.Stage) []suite.Check
}{
	{"smoke", smokeChecks},
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
	for _, column := range columns {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		results.Run(ctx, column.name, column.checks(s))
	}
	return results.Finish()
}
