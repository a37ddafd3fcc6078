// Package suite runs named checks against something that takes long to make, and says what they proved: lines
// as `go test -v` writes them, so that CI recognises them, and a table at the end.
//
// It is not `go test`, because a check here is one of many about the same thing, in an order, and the reader
// wants the sum. Several goroutines may run checks of one suite at once.
package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// Check is something to prove.
type Check struct {
	// Name identifies the check, among those about the same subject, on the command line and in the output.
	Name string
	// Proves is what is so when the check passes.
	Proves string
	// Run proves it, or fails the T. It may end early by T.Fatalf.
	Run func(*T)
}

// Outcome is what became of a check.
type Outcome string

// The outcomes that a check can have.
const (
	Pass Outcome = "PASS"
	Fail Outcome = "FAIL"
	Skip Outcome = "SKIP"
)

// Suite collects the outcomes of checks.
type Suite struct {
	filter *regexp.Regexp
	layout Layout
	begin  time.Time

	mu      sync.Mutex // guards what follows
	out     io.Writer
	results []result
	order   []string // of the subjects that were announced
}

// result is what became of a check, and what of the layouts want to know of it.
type result struct {
	subject, name, proves string
	outcome               Outcome
	figure                string // what was measured, if anything was
}

// New returns a suite that writes to out and runs the checks whose full name, subject/name, matches filter. The
// sum has the layout.
func New(out io.Writer, filter *regexp.Regexp, layout Layout) *Suite {
	return &Suite{out: out, filter: filter, layout: layout, begin: time.Now()}
}

// Announce fixes the order in which the sum has these subjects, whichever of them is done first. Those that nobody
// announces come before.
func (s *Suite) Announce(subjects ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = append(s.order, subjects...)
}

// Selects says whether any of the checks is to be run on this subject, so that what they need has to be made.
func (s *Suite) Selects(subject string, checks []Check) bool {
	for _, check := range checks {
		if s.filter.MatchString(subject + "/" + check.Name) {
			return true
		}
	}
	return false
}

// Run runs the checks that are selected, in order, each whether or not those before it passed.
func (s *Suite) Run(ctx context.Context, subject string, checks []Check) {
	for _, check := range checks {
		if s.filter.MatchString(subject + "/" + check.Name) {
			s.Must(ctx, subject, check)
		}
	}
}

// Must runs a check even if it is not selected, because others depend on it, and says whether it passed.
func (s *Suite) Must(ctx context.Context, subject string, check Check) bool {
	t := &T{ctx: ctx}
	name := subject + "/" + check.Name
	s.printf("=== RUN   %s\n", name)
	begin := time.Now()
	t.run(check.Run)
	// In one piece: another check may be writing too.
	s.printf("%s--- %s: %s (%.1fs)\n", t.log.String(), t.outcome(), name, time.Since(begin).Seconds())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results = append(s.results, result{subject, check.Name, check.Proves, t.outcome(), t.figure})
	return t.outcome() != Fail
}

func (s *Suite) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

// Failed counts the checks that failed.
func (s *Suite) Failed() int { return s.count(Fail) }

func (s *Suite) count(outcome Outcome) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.results {
		if r.outcome == outcome {
			n++
		}
	}
	return n
}

// Finish writes the sum, when all checks have ended. It returns an error if a check failed, or if none was
// selected: that is a mistake in the expression and proves nothing.
func (s *Suite) Finish() error {
	if len(s.results) == 0 {
		return fmt.Errorf("no check matches -run %q", s.filter)
	}
	slices.SortStableFunc(s.results, func(a, b result) int {
		return slices.Index(s.order, a.subject) - slices.Index(s.order, b.subject)
	})
	fmt.Fprintln(s.out)
	s.layout(s.out, s.results)
	fmt.Fprintf(s.out, "\n%d passed, %d failed, %d skipped in %.0f s\n",
		s.count(Pass), s.count(Fail), s.count(Skip), time.Since(s.begin).Seconds())
	if s.Failed() > 0 {
		fmt.Fprintln(s.out, Fail)
		return errors.New("some checks failed: see the lines that begin with --- FAIL")
	}
	fmt.Fprintln(s.out, Pass)
	return nil
}

// T is what a running check reports to, as testing.T is for a test. Its methods are called from the check's own
// goroutine.
type T struct {
	ctx      context.Context
	log      strings.Builder
	figure   string
	failed   bool
	skipped  bool
	cleanups []func()
}

// Failed says whether the check has failed so far.
func (t *T) Failed() bool { return t.failed }

// Context ends when the run is interrupted.
func (t *T) Context() context.Context { return t.ctx }

// Logf says something that a reader wants to know in any case, such as a figure.
func (t *T) Logf(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n        ")
	fmt.Fprintf(&t.log, "    %s\n", text)
}

// Figure is what the check measured, in short, such as "12 ms": it stands for its outcome when it passes.
func (t *T) Figure(format string, args ...any) {
	t.figure = fmt.Sprintf(format, args...)
	t.Logf("%s", t.figure)
}

// Errorf fails the check and goes on.
func (t *T) Errorf(format string, args ...any) {
	t.failed = true
	t.Logf(format, args...)
}

// Fatalf fails the check and ends it.
func (t *T) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// Check ends the check if there is an error.
func (t *T) Check(err error) {
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// Skipf ends the check without a verdict.
func (t *T) Skipf(format string, args ...any) {
	t.skipped = true
	t.Logf(format, args...)
	runtime.Goexit()
}

// Cleanup has f called when the check ends, the last first.
func (t *T) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// run calls f on a goroutine that Fatalf can end.
func (t *T) run(f func(*T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.clean()
		defer func() {
			if p := recover(); p != nil {
				t.failed = true
				t.Logf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		f(t)
	}()
	<-done
}

// clean goes on with the next cleanup when one ends the check.
func (t *T) clean() {
	if n := len(t.cleanups); n > 0 {
		last := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		defer t.clean()
		last()
	}
}

func (t *T) outcome() Outcome {
	switch {
	case t.failed:
		return Fail
	case t.skipped:
		return Skip
	}
	return Pass
}
