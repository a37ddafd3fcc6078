package accidents

import (
	"context"
	"errors"

	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// alone is a row with a guest of its own.
type alone struct {
	subject string
	pod     suite.Check   // lasts as long as the guest, and measures
	columns []suite.Check // judge what was measured
}

// measuredAlone returns a row with the usual columns.
func measuredAlone(name string, measure func(*suite.T) *measured) *alone {
	m := &measured{err: errors.New("the guest has not come so far: see the check pod")}
	return &alone{
		subject: "accidents/" + name,
		pod:     podCheck(func(t *suite.T) { *m = *measure(t) }),
		columns: verdicts(m),
	}
}

// run measures, where any column is selected.
func (a *alone) run(ctx context.Context, results *suite.Suite) {
	if !results.Selects(a.subject, a.columns) {
		return
	}
	results.Must(ctx, a.subject, a.pod)
	results.Run(ctx, a.subject, a.columns)
}
