package stage

import "github.com/example/kubevirt-imds/tools/e2e/suite"

// Once is for checks that judge one event from several sides: what happens, happens in the first of them that is
// run. If that went wrong, the others fail.
func Once[S any](happen func(*suite.T) *S) func(*suite.T) *S {
	var begun bool
	var seen *S
	return func(t *suite.T) *S {
		if !begun {
			begun = true
			seen = happen(t)
		}
		if seen == nil {
			t.Fatalf("what this is about went wrong in a check before")
		}
		return seen
	}
}
