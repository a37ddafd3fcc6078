package checks

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// remove deletes what install applied.
func (in *installation) remove(t *testing.T) {
	ctx := context.WithoutCancel(t.Context())
	for _, undo := range slices.Backward(in.undo) {
		check(t, undo(ctx))
	}
	_, err := in.kubectl(ctx, "delete", "-k", in.path(), "--timeout="+patience.String())
	check(t, err)
	after, err := in.takeSnapshot(ctx)
	check(t, err)
	if left := after.less(in.before); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if lost := in.before.less(after); len(lost) > 0 {
		t.Errorf("gone, but not the overlay's:\n%s", strings.Join(lost, "\n"))
	}
}
