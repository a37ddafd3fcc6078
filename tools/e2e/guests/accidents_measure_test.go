package guests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	// rate is how often the guest asks, in a second.
	rate = 10
	// healLimit is how long an accident may be felt.
	healLimit = time.Second
	// patience is how long it may last until it is given up.
	patience = 30 * time.Second
)

// measured is what came of an accident.
type measured struct {
	err     error         // why it is not measured
	heal    time.Duration // by this machine's clock
	stalled time.Duration // for so long, of that, somebody had to wait for a processor
	asked   asked
	lost    []guestagent.Loss // those that nothing excuses
	excused int
	leak    []string
	notes   []string // figures about it
	history string   // of many accidents
	slowest string   // to heal, of many accidents
	hale    bool     // nothing had to heal
	// anyGap: the gap says nothing of the project, because the guest had no NIC for a while, or asked in turn, where
	// it shows how long a busy machine held the guest up.
	anyGap bool
}

// measure makes an accident happen to a guest that asks before, meanwhile and after.
func (v *accidentVM) measure(a accident) *measured {
	url := tokenURL
	if a.ipv6 {
		url = tokenURL6
	}
	asking := v.ask(url, usualPatience)
	v.letAsk(500 * time.Millisecond)
	h := v.happen(a)
	v.letAsk(time.Second)
	m := &measured{err: h.err, heal: h.heal, stalled: h.stalled, asked: asking.stop(), anyGap: a.unplugged}
	m.lost, m.excused = m.asked.judge(h.excuses)
	m.leak = v.leaks()
	return m
}

// letAsk lets the guest go on asking for a while, by the guest's clock.
func (v *accidentVM) letAsk(d time.Duration) { v.Shell(fmt.Sprintf("usleep %d", d.Microseconds())) }

// happened is an accident that is over.
type happened struct {
	err     error
	heal    time.Duration
	stalled time.Duration
	excuses *windows // in which requests may be lost
}

// happen makes an accident happen and waits until all is as it was.
func (v *accidentVM) happen(a accident) happened {
	h := happened{excuses: &windows{}}
	ctx, cancel := context.WithTimeoutCause(v.t.Context(), patience, fmt.Errorf("not healed after %s", patience))
	defer cancel()
	fromInit, fromServer := len(v.Init.Log()), len(v.Server.Log())
	v.changes.mark()
	begin, stalledBefore := time.Now(), stalled()
	if a.unruled {
		v.unruled.add(window{from: begin})
	}
	if h.err = a.happen(v); h.err != nil {
		return h
	}
	turn := begin // of the project
	if a.mend != nil {
		v.changes.mark()
		turn = time.Now()
		if h.err = a.mend(v); h.err != nil {
			return h
		}
	}
	if a.initAnew {
		h.err = v.Init.AwaitLogAfter(ctx, fromInit, "msg=wired")
	}
	if a.listensAnew && h.err == nil {
		h.err = v.awaitListening(ctx, fromServer)
	}
	if h.err == nil {
		h.err = v.awaitState(ctx)
	}
	healed := time.Now()
	if !a.ends {
		// On a busy machine the kernel does not return at once to whoever deletes something.
		turn = v.changes.since(turn)
	}
	h.heal, h.stalled = healed.Sub(turn), stalled()-stalledBefore
	if a.unruled {
		v.unruled.close(healed)
	}
	if a.unplugged {
		v.plugNIC()
		h.excuses.add(window{begin, time.Now(), []guestagent.Failure{guestagent.Unreachable, guestagent.Reset}, true})
	}
	if a.listensAnew {
		h.excuses.add(window{begin, healed, []guestagent.Failure{guestagent.Refused, guestagent.Reset}, !a.ends})
	}
	return h
}

// stalled is for how long so far somebody on this machine had to wait for a processor, as the kernel tells
// (Documentation/accounting/psi.rst). 0: it does not.
func stalled() time.Duration {
	pressure, _ := os.ReadFile("/proc/pressure/cpu")
	_, total, _ := strings.Cut(string(pressure), "total=")
	var microseconds int64
	fmt.Sscan(total, &microseconds)
	return time.Duration(microseconds) * time.Microsecond
}

// awaitListening waits until imds-server has said, after a position of its log, that it listens on both addresses.
func (v *accidentVM) awaitListening(ctx context.Context, position int) error {
	return errors.Join(
		v.Server.AwaitLogAfter(ctx, position, "msg=listening address=169.254.169.254:80"),
		v.Server.AwaitLogAfter(ctx, position, "msg=listening address=[fe80::a9fe:a9fe"))
}

// awaitState waits until the pod's network is as it was before the first accident.
func (v *accidentVM) awaitState(ctx context.Context) error {
	for {
		now, err := readState(v.Net.Pod)
		if err == nil && len(v.before.difference(now)) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			if err == nil {
				err = fmt.Errorf("%q", v.before.difference(now))
			}
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if err != nil {
			continue // it changed while it was read
		}
		select {
		case <-v.changes.happened:
		case <-ctx.Done():
		}
	}
}

// asking is the guest's asking, with what ties its clock to this machine's.
type asking struct {
	vm          *accidentVM
	task        *guestagent.Task[guestagent.Asked]
	told, begun time.Time // it began between
}

// usualPatience is how long the guest waits for an answer: longer than most clients, because it is slow itself.
const usualPatience = 10 * time.Second

// Where the guest asks. It has to say by which NIC, of a link-local address of IPv6.
const (
	tokenURL  = vmtest.MetadataURL + "/v1/token"
	tokenURL6 = "http://[fe80::a9fe:a9fe%25eth0]/v1/token"
)

// ask has the guest begin to ask, each time with a time limit.
func (v *accidentVM) ask(url string, limit time.Duration) *asking {
	told := time.Now()
	task, err := v.Guest.Agent.Ask(v.t.Context(), guestagent.Ask{Get: guestagent.Get{URL: url, Limit: limit}, Rate: rate})
	check(v.t, err)
	return &asking{v, task, told, time.Now()}
}

// asked is the guest's report. It began to ask at some time from earliest to latest, by this machine's clock: between
// its being told to and its saying so, and at least as long before its report came as the asking took.
type asked struct {
	guestagent.Asked
	earliest, latest time.Time
}

func (a *asking) stop() asked {
	report := a.vm.Stop(a.task)
	latest := time.Now().Add(-report.Took)
	switch {
	case latest.Before(a.told):
		latest = a.told
	case latest.After(a.begun):
		latest = a.begun
	}
	return asked{report, a.told, latest}
}

// judge parts the losses into those that nothing excuses, and the number of the others.
func (a asked) judge(excuses *windows) (lost []guestagent.Loss, excused int) {
	for _, loss := range a.Lost {
		if excuses.excuse(loss.Failure, a.earliest.Add(loss.Begin), a.latest.Add(loss.End)) {
			excused++
		} else {
			lost = append(lost, loss)
		}
	}
	return lost, excused
}

// mostShown is how many losses a failure shows.
const mostShown = 5

// judge has the checks of what was measured as subtests.
func (m *measured) judge(t *testing.T, subject string, v *accidentVM) {
	for _, c := range []struct {
		name, proves string
		judge        func(*testing.T, *measured)
	}{
		{"lost", "requests lost, of those that the end of a process, a device or a boot does not make unavoidable: none (those: in brackets)", lost},
		{"gap", "longest time without a good answer, by the clock of the guest that asks: less than a second, but where its NIC was away", gap},
		{"heal", "time from the accident until all is as it was: less than a second", heal},
		{"leak", "left behind, of links, addresses, routes, rules and file descriptors: nothing", leak},
	} {
		results.Check(t, subject, c.name, c.proves, func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(m.history + v.Describe())
				}
			})
			check(t, m.err)
			c.judge(t, m)
		})
	}
}

func lost(t *testing.T, m *measured) {
	if m.asked.Answered == 0 {
		t.Errorf("no request was answered")
	}
	for _, loss := range m.lost[:min(len(m.lost), mostShown)] {
		t.Errorf("lost: %s, begun at %s, ended at %s of %s: %s", loss.Failure, loss.Begin, loss.End, m.asked.Took, loss.Detail)
	}
	if unseen := sum(m.asked.Failures) - len(m.asked.Lost); unseen > 0 {
		t.Errorf("%d more requests were lost than the guest reports", unseen)
	}
	figure := fmt.Sprint(len(m.lost))
	if m.excused > 0 {
		figure += " (" + kinds(m.asked.Failures) + ")"
	}
	results.Figure(t, "%s", figure)
	t.Logf("%d requests, %d answered", m.asked.Sent, m.asked.Answered)
}

func sum(failures map[guestagent.Failure]int) (n int) {
	for _, count := range failures {
		n += count
	}
	return n
}

// kinds is how many failed in which way.
func kinds(failures map[guestagent.Failure]int) string {
	var all []string
	for failure, count := range failures {
		all = append(all, fmt.Sprintf("%d %s", count, failure))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func gap(t *testing.T, m *measured) {
	// A machine that is busy holds the guest up, and it is not the answers that are late.
	if m.asked.Gap-m.asked.Late > healLimit && !m.anyGap {
		t.Errorf("a gap of %s, from %s of %s on, with the guest held up for %s at most",
			m.asked.Gap, m.asked.GapBegin, m.asked.Took, m.asked.Late)
	}
	results.Figure(t, "%d ms", m.asked.Gap.Milliseconds())
}

func heal(t *testing.T, m *measured) {
	if m.hale {
		results.Figure(t, "-")
		return
	}
	// On a busy machine it is not the project that is late.
	if m.heal-m.stalled > healLimit {
		t.Errorf("it took %s, and somebody had to wait for a processor for %s", m.heal, m.stalled)
	}
	if m.slowest != "" {
		t.Logf("the slowest was %s", m.slowest)
	}
	results.Figure(t, "%s", milliseconds(m.heal))
}

func leak(t *testing.T, m *measured) {
	for _, line := range m.leak {
		t.Errorf("%s", line)
	}
	for _, note := range m.notes {
		t.Logf("%s", note)
	}
	results.Figure(t, "none")
}

// windows are stretches of time in which something may happen that may not happen otherwise.
type windows struct {
	mu  sync.Mutex
	all []window
}

type window struct {
	from, to time.Time // to is zero while it lasts
	failures []guestagent.Failure
	// silent: who waits for an answer when it begins is not told that none will come. The other end cannot reach
	// it, and it has nothing to send that would be refused.
	silent bool
}

func (w *windows) add(one window) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

// close ends the last window.
func (w *windows) close(to time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[len(w.all)-1].to = to
}

// excuse says whether a request was under way in a window that allows that it fails so. Begin is the earliest, end the
// latest time that it can have had.
func (w *windows) excuse(f guestagent.Failure, begin, end time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.all, func(one window) bool {
		if f == guestagent.Timeout {
			return one.silent && begin.Before(one.from) && end.After(one.from)
		}
		return slices.Contains(one.failures, f) && begin.Before(one.to) && end.After(one.from)
	})
}

// readLate is how long after it has passed a frame may be read.
const readLate = 100 * time.Millisecond

// mayLeave says whether a frame was on the uplink while nothing could hold it back: a guest in bridge binding sends its
// question to its gateway, and only a rule turns it round. The answer to it is nobody's, and the token not in it.
func (w *windows) mayLeave(f podnet.Frame) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.all {
		if f.At.After(one.from) && (one.to.IsZero() || f.At.Before(one.to.Add(readLate))) {
			return true
		}
	}
	return false
}

func TestWhatIsExcused(t *testing.T) {
	at := func(second float64) time.Time {
		return time.Unix(0, 0).Add(time.Duration(second * float64(time.Second)))
	}
	resets := []guestagent.Failure{guestagent.Refused, guestagent.Reset}
	for _, c := range []struct {
		name       string
		silent     bool
		failure    guestagent.Failure
		begin, end float64
		want       bool
	}{
		{"reset when it happens", false, guestagent.Reset, 0.9, 1.1, true},
		{"refused while it lasts", false, guestagent.Refused, 1.4, 1.5, true},
		{"begun while it lasts, reset after it", false, guestagent.Reset, 1.9, 2.5, true},
		{"ended before", false, guestagent.Reset, 0.5, 0.9, false},
		{"begun after", false, guestagent.Refused, 2.1, 2.2, false},
		{"another failure", false, guestagent.Unreachable, 1.4, 1.5, false},
		{"no answer, with the other end gone", true, guestagent.Timeout, 0.9, 10.9, true},
		{"no answer, with the other end there", false, guestagent.Timeout, 0.9, 10.9, false},
		{"no answer, asked while it lasts", true, guestagent.Timeout, 1.1, 11.1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
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
		name  string
		after []string
		want  []string
	}{
		{"nothing", []string{"a", "b", "b", "c"}, nil},
		{"one is gone", []string{"a", "b", "b"}, []string{"missing: c"}},
		{"one of two is gone", []string{"a", "b", "c"}, []string{"missing: b"}},
		{"one is new", []string{"a", "b", "b", "c", "d"}, []string{"more: d"}},
		{"one is there twice", []string{"a", "a", "b", "b", "c"}, []string{"more: a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := before.difference(&state{c.after}); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
