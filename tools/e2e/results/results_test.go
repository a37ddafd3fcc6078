package results

import (
	"slices"
	"strings"
	"testing"
)

func TestTables(t *testing.T) {
	var all []*result
	for _, subject := range []string{"bindings/bridge", "attacks/flood", "bindings/masquerade"} {
		all = append(all, &result{subject, "fast", "it is fast", "PASS", "12 ms"}, &result{subject, "right", "it is right", "FAIL", "3 of 4"})
	}
	all = append(all, &result{"bindings/bridge", "there", "it is there", "SKIP", ""})
	for name, test := range map[string]struct {
		layout Layout
		want   string
	}{
		"a row for each proof": {ByProof, `
subjects     bindings/bridge  attacks/flood  bindings/masquerade
it is fast   12 ms            12 ms          12 ms
it is right  FAIL             FAIL           FAIL
it is there  SKIP             -              -
`},
		"a row for each subject, in a table for each group": {BySubject, `
bindings    fast   right  there
bridge      12 ms  FAIL   SKIP
masquerade  12 ms  FAIL   -

fast   it is fast
right  it is right
there  it is there

attacks  fast   right
flood    12 ms  FAIL

fast   it is fast
right  it is right
`},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			test.layout(&out, all)
			if got, want := strings.TrimSpace(out.String()), strings.TrimSpace(test.want); got != want {
				t.Errorf("got\n%q\nwant\n%q", got, want)
			}
		})
	}
}

func TestListAndChecksAreTheSame(t *testing.T) {
	got := compare([]string{"a/x", "a/y"}, []*result{{subject: "a", name: "y"}, {subject: "b", name: "z"}})
	if want := []string{"not run: a/x", "not listed: b/z"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
