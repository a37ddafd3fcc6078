package stage

import "github.com/example/kubevirt-imds/tools/e2e/suite"

// Aspects is for checks that judge one event from several sides: it returns what makes such a check. What happens,
// happens in the first of them that is run. If that went wrong, the others fail.
func Aspects[S any](happen func(*suite.T) *S) func(name, proves string, judge func(*suite.T, *S)) suite.Check {
	var begun bool
	var seen *S
	return func(name, proves string, judge func(*suite.T, *S)) suite.Check {
		return suite.Check{Name: name, Proves: proves, Run: func(t *suite.T) {
			if !begun {
				begun = true
				seen = happen(t)
			}
			if seen == nil {
				t.Fatalf("what this is about went wrong in a check before")
			}
			judge(t, seen)
		}}
	}
}
