package checks

import (
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// remove deletes what install applied.
func (in *installation) remove() suite.Check {
	return suite.Check{Name: "remove", Proves: "kubectl delete -k leaves nothing behind", Run: func(t *suite.T) {
		ctx := t.Context()
		for _, undo := range slices.Backward(in.undo) {
			t.Check(undo(ctx))
		}
		_, err := in.kubectl(ctx, "delete", "-k", in.path(), "--timeout="+patience.String())
		t.Check(err)
		after, err := in.takeSnapshot(ctx)
		t.Check(err)
		if left := after.less(in.before); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		if lost := in.before.less(after); len(lost) > 0 {
			t.Errorf("gone, but not the overlay's:\n%s", strings.Join(lost, "\n"))
		}
	}}
}
