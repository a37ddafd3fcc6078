package accidents

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

const (
	pauseLength = time.Minute
	probePeriod = 10 * time.Second
	// heldOpen is how many connections, on which nothing is said, the guest has when it is paused.
	heldOpen = 20
)

// guestPaused is a guest that stands still for a minute, as it does for a snapshot or in a migration that goes
// wrong, with connections open. Its clock stands still too.
func guestPaused(s *stage.Stage) *alone {
	return measuredAlone("guest-paused", func(t *suite.T) *measured {
		story := begin(t, s, stage.Options{Name: "paused"})
		return story.measurePause()
	})
}

func (s *story) measurePause() *measured {
	m := &measured{}
	g := s.vm.Guest
	holding, err := g.Hand.Hold(s.t.Context(), hand.Hold{Address: strings.TrimPrefix(stage.MetadataURL, "http://") + ":80", Connections: heldOpen})
	s.t.Check(err)
	asking := s.ask(tokenURL, usualPatience)
	s.letAsk(500 * time.Millisecond)

	stopped := time.Now()
	s.t.Check(g.Pause(s.t.Context()))
	s.probeFor(pauseLength)
	// Whatever the guest had open has ended by the server's time limits, or is the kernel's alone.
	for name, more := range s.awaitDescriptors() {
		m.leak = append(m.leak, fmt.Sprintf("%s has %d open files more than before, while the guest is paused", name, more))
	}
	resumed := time.Now()
	s.t.Check(g.Resume(s.t.Context()))
	s.vm.AwaitAnswers(1)
	m.heal = time.Since(resumed)
	s.letAsk(2 * time.Second)

	m.asked = asking.stop()
	// The guest's clock lacks the pause: what it took says nothing of when it began. What was under way when it was
	// paused, the server has given up.
	m.asked.latest = asking.begun
	var excuses windows
	excuses.add(window{from: stopped, to: stopped.Add(time.Second), failures: []hand.Failure{hand.Reset}})
	m.lost, m.excused = m.asked.judge(&excuses)

	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	held, err := holding.Stop(ctx)
	s.t.Check(err)
	if held.Opened != heldOpen || held.Ended != heldOpen {
		m.err = fmt.Errorf("of %d connections that were open during the pause, %d had been opened and %d have ended: "+
			"the others hang", heldOpen, held.Opened, held.Ended)
	}
	m.leak = append(m.leak, s.leaks()...)
	m.evidence = s.evidence()
	return m
}

// probeFor probes as the kubelet does, for a while.
func (s *story) probeFor(d time.Duration) {
	over := time.After(d)
	period := time.NewTicker(probePeriod)
	defer period.Stop()
	for {
		select {
		case <-period.C:
			s.t.Check(s.vm.Server.Probe(s.t.Context(), "-live"))
		case <-over:
			return
		case <-s.t.Context().Done():
			s.t.Fatalf("%v", context.Cause(s.t.Context()))
		}
	}
}
