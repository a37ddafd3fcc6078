package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// A long life with many accidents leaves nothing behind, neither in the pod nor
// in imds-init.
func TestAHundredAccidentsLeaveNothingBehind(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			pod, p := servedPod(t, podnet.Options{Binding: binding})
			before, held := snapshot(t, pod), p.holdings(t)
			order := rand.New(rand.NewPCG(1, 100))
			for n := range 100 {
				accident := accidents[order.IntN(len(accidents))]
				p.said()
				accident.happen(t, pod)
				if accident.says != "" {
					p.waitFor(t, accident.says)
				}
				if accident.mend != nil {
					must(t, accident.mend(pod))
					p.waitFor(t, "msg=wired")
				}
				p.awaitState(t, pod, before, fmt.Sprintf("accident %d, %s", n, accident.name))
			}
			p.awaitHoldings(t, held)
			serve(t, pod)
			mustServe(t, pod, guestAddress(binding))
		})
	}
}

// awaitState waits until the pod is as it was: what imds-init has repaired may
// have been one of two things that happened.
func (p *imdsInit) awaitState(t *testing.T, pod *podnet.Pod, want podState, after string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		have := snapshot(t, pod)
		if slices.Equal(have.state, want.state) {
			return
		}
		select {
		case <-p.lines:
		case <-deadline:
			t.Fatalf("after %s:\nwant %s\nhave %s", after,
				strings.Join(want.state, "\n     "), strings.Join(have.state, "\n     "))
		}
	}
}

// holdings are what a process has that a leak would add to.
type holdings struct{ goroutines, descriptors int }

// tellGoroutines has the test binary, where it is imds-init, write how many
// goroutines it has to its log at each SIGUSR1.
func tellGoroutines() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			fmt.Fprintln(os.Stderr, "holding", runtime.NumGoroutine())
		}
	}()
}

// holdings asks the process, and the kernel, what it holds.
func (p *imdsInit) holdings(t *testing.T) (h holdings) {
	t.Helper()
	p.Signal(syscall.SIGUSR1)
	line := p.waitFor(t, "holding ")
	if _, err := fmt.Sscanf(line, "holding %d", &h.goroutines); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	must(t, err)
	h.descriptors = len(descriptors)
	return h
}

// awaitHoldings waits until the process holds no more than it did. While it
// looks at the network it has a socket more; what leaked would never go.
func (p *imdsInit) awaitHoldings(t *testing.T, want holdings) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		have := p.holdings(t)
		if have.goroutines <= want.goroutines && have.descriptors <= want.descriptors {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("imds-init holds %+v, before the accidents %+v", have, want)
		}
	}
}
