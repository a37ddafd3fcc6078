package accidents

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	manyAccidents = 100
	// manyWithEnds is how many of them may end a process. In those after them the processes have to live on, or
	// what they leak would end with them.
	manyWithEnds = 20
	// manyPause is between two of them.
	manyPause = 200 * time.Millisecond
	// manyPatience is how long the guest waits for an answer. The kernel sends what was lost again after 1, 3 and
	// 7 s, and may meet another accident each time.
	manyPatience = 20 * time.Second
)

// measureMany makes accident after accident happen, in an order that is the same each time. To heal is what the
// slowest took.
func (s *story) measureMany() *measured {
	m := &measured{}
	order := rand.New(rand.NewPCG(1, manyAccidents))
	all := accidentsOf(s.binding)
	var excuses windows
	var history strings.Builder
	before := s.sizes()
	asking := s.ask(tokenURL, manyPatience)
	for n := range manyAccidents {
		a := all[order.IntN(len(all))]
		for n >= manyWithEnds && a.ends {
			a = all[order.IntN(len(all))]
		}
		begin := time.Since(asking.told)
		h := s.happen(a)
		fmt.Fprintf(&history, "%s to %s: %s\n", begin, time.Since(asking.told), a.name)
		if h.err != nil {
			m.err = fmt.Errorf("accident %d, %s: %w", n, a.name, h.err)
			break
		}
		if h.heal > m.heal {
			m.heal, m.slowest = h.heal, a.name
		}
		m.anyGap = m.anyGap || a.unplugged
		excuses.all = append(excuses.all, h.excuses.all...)
		s.letAsk(manyPause)
	}
	s.letAsk(time.Second)
	m.asked = asking.stop()
	m.lost, m.excused = m.asked.judge(&excuses)
	m.leak = append(s.leaks(), m.growth(before, s.sizes())...)
	m.evidence = "since the guest was told to ask:\n" + history.String() + s.evidence()
	m.leak = append(m.leak, s.goroutineLeaks(m)...)
	return m
}
