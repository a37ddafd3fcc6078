package suite

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

// The checks of the examples: one that measures, one that fails, one that cannot run.
var checks = []Check{
	{"fast", "it is fast", func(t *T) { t.Figure("%d ms", 12) }},
	{"right", "it is right", func(t *T) { t.Check(errors.New("it is wrong")) }},
	{"there", "it is there", func(t *T) { t.Skipf("nobody knows") }},
}

func run(t *testing.T, layout Layout, filter string, subjects ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	s := New(&out, regexp.MustCompile(filter), layout)
	for _, subject := range subjects {
		s.Run(t.Context(), subject, checks)
	}
	err := s.Finish()
	return out.String(), err
}

func TestLinesAreThoseOfGoTest(t *testing.T) {
	out, err := run(t, ByProof, "right", "bridge")
	if err == nil {
		t.Error("a failed check is no error")
	}
	want := regexp.MustCompile(`^=== RUN   bridge/right
    it is wrong
--- FAIL: bridge/right \(\d+\.\ds\)
`)
	if !want.MatchString(out) {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestLayouts(t *testing.T) {
	for name, test := range map[string]struct {
		layout   Layout
		subjects []string
		want     string
	}{
		"a row for each proof": {ByProof, []string{"bridge", "masquerade"}, `
             bridge  masquerade
it is fast   12 ms   12 ms
it is right  FAIL    FAIL
it is there  SKIP    SKIP
`},
		"a row for each subject, in a table for each group": {BySubject, []string{"bindings/bridge", "attacks/flood", "bindings/masquerade"}, `
bindings    fast   right  there
bridge      12 ms  FAIL   SKIP
masquerade  12 ms  FAIL   SKIP

fast   it is fast
right  it is right
there  it is there

attacks  fast   right  there
flood    12 ms  FAIL   SKIP

fast   it is fast
right  it is right
there  it is there
`},
	} {
		t.Run(name, func(t *testing.T) {
			out, _ := run(t, test.layout, ".", test.subjects...)
			if !strings.Contains(out, test.want) {
				t.Errorf("got\n%swant\n%s", out, test.want)
			}
		})
	}
}

func TestWhatWasNotRunIsADash(t *testing.T) {
	out, _ := run(t, BySubject, "/bridge/fast|/masquerade/right", "bindings/bridge", "bindings/masquerade")
	if want := "bridge      12 ms  -\nmasquerade  -      FAIL\n"; !strings.Contains(out, want) {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestAnnouncedSubjectsAreInTheirOrder(t *testing.T) {
	var out strings.Builder
	s := New(&out, regexp.MustCompile("fast"), BySubject)
	s.Announce("bindings/bridge", "bindings/masquerade")
	for _, subject := range []string{"bindings/masquerade", "bindings/other", "bindings/bridge"} {
		s.Run(t.Context(), subject, checks)
	}
	s.Finish()
	if want := "other       12 ms\nbridge      12 ms\nmasquerade  12 ms\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestNoCheckIsAnError(t *testing.T) {
	if _, err := run(t, ByProof, "nothing", "bridge"); err == nil {
		t.Error("an expression that matches nothing is no error")
	}
}

func TestAPanicFailsTheCheckAlone(t *testing.T) {
	var out strings.Builder
	s := New(&out, regexp.MustCompile("."), ByProof)
	s.Run(t.Context(), "bridge", []Check{
		{"panic", "it does not panic", func(*T) { panic("oh") }},
		{"after", "the next one runs", func(*T) {}},
	})
	if s.Failed() != 1 || s.count(Pass) != 1 {
		t.Errorf("%d failed, %d passed, want one each:\n%s", s.Failed(), s.count(Pass), out.String())
	}
}
