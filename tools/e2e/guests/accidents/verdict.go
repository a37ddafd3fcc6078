package accidents

import (
	"fmt"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// mostShown is how many losses a failure shows.
const mostShown = 5

// verdicts are the columns of what was measured. Their names do not depend on it.
func verdicts(m *measured) []suite.Check {
	judge := func(what func(*suite.T, *measured)) func(*suite.T) {
		return func(t *suite.T) {
			if m.err != nil {
				t.Errorf("%v", m.err)
			} else {
				what(t, m)
			}
			if t.Failed() {
				t.Logf("%s", m.evidence)
			}
		}
	}
	return []suite.Check{
		{Name: "lost", Proves: "requests lost, of those that the end of a process, a device or a boot does not make unavoidable: none (those: in brackets)", Run: judge(lost)},
		{Name: "gap", Proves: "longest time without a good answer, by the clock of the guest that asks: less than a second, but where its NIC was away", Run: judge(gap)},
		{Name: "heal", Proves: "time from the accident until all is as it was: less than a second", Run: judge(heal)},
		{Name: "leak", Proves: "left behind, of links, addresses, routes, rules and file descriptors: nothing", Run: judge(leak)},
	}
}

func lost(t *suite.T, m *measured) {
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
	t.Figure("%s", figure)
	t.Logf("%d requests, %d answered", m.asked.Sent, m.asked.Answered)
}

func sum(failures map[hand.Failure]int) (n int) {
	for _, count := range failures {
		n += count
	}
	return n
}

// kinds is how many failed in which way.
func kinds(failures map[hand.Failure]int) string {
	var all []string
	for failure, count := range failures {
		all = append(all, fmt.Sprintf("%d %s", count, failure))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func gap(t *suite.T, m *measured) {
	// A machine that is busy holds the guest up, and it is not the answers that are late.
	if m.asked.Gap-m.asked.Late > healLimit && !m.anyGap {
		t.Errorf("a gap of %s, from %s of %s on, with the guest held up for %s at most",
			m.asked.Gap, m.asked.GapBegin, m.asked.Took, m.asked.Late)
	}
	t.Figure("%d ms", m.asked.Gap.Milliseconds())
}

func heal(t *suite.T, m *measured) {
	if m.hale {
		t.Figure("-")
		return
	}
	if m.heal > healLimit {
		t.Errorf("it took %s", m.heal)
	}
	if m.slowest != "" {
		t.Logf("the slowest was %s", m.slowest)
	}
	t.Figure("%.1f ms", float64(m.heal.Microseconds())/1000)
}

func leak(t *suite.T, m *measured) {
	for _, line := range m.leak {
		t.Errorf("%s", line)
	}
	for _, note := range m.notes {
		t.Logf("%s", note)
	}
	t.Figure("none")
}
