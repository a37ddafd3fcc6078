package accidents

import (
	"slices"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

func TestWhatIsExcused(t *testing.T) {
	at := func(second float64) time.Time {
		return time.Unix(0, 0).Add(time.Duration(second * float64(time.Second)))
	}
	resets := []hand.Failure{hand.Refused, hand.Reset}
	for _, c := range []struct {
		scenario   string
		silent     bool
		failure    hand.Failure
		begin, end float64
		want       bool
	}{
		{"reset when it happens", false, hand.Reset, 0.9, 1.1, true},
		{"refused while it lasts", false, hand.Refused, 1.4, 1.5, true},
		{"begun while it lasts, reset after it", false, hand.Reset, 1.9, 2.5, true},
		{"ended before", false, hand.Reset, 0.5, 0.9, false},
		{"begun after", false, hand.Refused, 2.1, 2.2, false},
		{"another failure", false, hand.Unreachable, 1.4, 1.5, false},
		{"no answer, with the other end gone", true, hand.Timeout, 0.9, 10.9, true},
		{"no answer, with the other end there", false, hand.Timeout, 0.9, 10.9, false},
		{"no answer, asked while it lasts", true, hand.Timeout, 1.1, 11.1, false},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			var w windows
			w.add(window{at(1), at(2), resets, c.silent})
			if got := w.excuse(c.failure, at(c.begin), at(c.end)); got != c.want {
				t.Errorf("excused: %t, want %t", got, c.want)
			}
		})
	}
}

func TestDifferenceOfStates(t *testing.T) {
	before := &state{[]string{"a", "b", "b", "c"}}
	for _, c := range []struct {
		scenario string
		after    []string
		want     []string
	}{
		{"nothing", []string{"a", "b", "b", "c"}, nil},
		{"one is gone", []string{"a", "b", "b"}, []string{"missing: c"}},
		{"one of two is gone", []string{"a", "b", "c"}, []string{"missing: b"}},
		{"one is new", []string{"a", "b", "b", "c", "d"}, []string{"more: d"}},
		{"one is there twice", []string{"a", "a", "b", "b", "c"}, []string{"more: a"}},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			if got := before.difference(&state{c.after}); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
