package guests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
)

const (
	pauseLength = time.Minute
	probePeriod = 10 * time.Second
	// heldOpen is how many connections, on which nothing is said, the guest has when it is paused.
	heldOpen = 20
)

// A guest stands still for a minute, as it does for a snapshot or in a migration that goes wrong, with connections
// open. Its clock stands still too.
func TestGuestPaused(t *testing.T) {
	t.Parallel()
	const subject = "accidents/guest-paused"
	var v *accidentVM
	var m *measured
	if !results.Skipping() {
		v = startAccidentVM(t, vmtest.Options{Name: "paused"})
		m = v.measurePause()
	}
	m.judge(t, subject, v)
	checkPod(t, subject, v)
}

func (v *accidentVM) measurePause() *measured {
	m := &measured{}
	g := v.Guest
	holding, err := g.Agent.Hold(v.t.Context(), guestagent.Hold{Address: strings.TrimPrefix(vmtest.MetadataURL, "http://") + ":80", Connections: heldOpen})
	check(v.t, err)
	asking := v.ask(tokenURL, usualPatience)
	v.letAsk(500 * time.Millisecond)

	stopped := time.Now()
	check(v.t, g.Pause(v.t.Context()))
	v.probeFor(pauseLength)
	// Whatever the guest had open has ended by the server's time limits, or is the kernel's alone.
	for name, more := range v.awaitDescriptors() {
		m.leak = append(m.leak, fmt.Sprintf("%s has %d open files more than before, while the guest is paused", name, more))
	}
	resumed := time.Now()
	check(v.t, g.Resume(v.t.Context()))
	v.AwaitAnswers(1)
	m.heal = time.Since(resumed)
	v.letAsk(2 * time.Second)

	m.asked = asking.stop()
	// The guest's clock lacks the pause: what it took says nothing of when it began. What was under way when it was
	// paused, the server has given up.
	m.asked.latest = asking.begun
	var excuses windows
	excuses.add(window{from: stopped, to: stopped.Add(time.Second), failures: []guestagent.Failure{guestagent.Reset}})
	m.lost, m.excused = m.asked.judge(&excuses)

	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	held, err := holding.Stop(ctx)
	check(v.t, err)
	if held.Opened != heldOpen || held.Ended != heldOpen {
		m.err = fmt.Errorf("of %d connections that were open during the pause, %d had been opened and %d have ended: "+
			"the others hang", heldOpen, held.Opened, held.Ended)
	}
	m.leak = append(m.leak, v.leaks()...)
	return m
}

// probeFor probes as the kubelet does, for a while.
func (v *accidentVM) probeFor(d time.Duration) {
	over := time.After(d)
	period := time.NewTicker(probePeriod)
	defer period.Stop()
	for {
		select {
		case <-period.C:
			check(v.t, v.Server.Probe(v.t.Context(), "-live"))
		case <-over:
			return
		case <-v.t.Context().Done():
			v.t.Fatalf("%v", context.Cause(v.t.Context()))
		}
	}
}
