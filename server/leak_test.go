package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet/netnstest"
)

// Its device is deleted and made anew a hundred times, with a connection open
// each time, as imds-init does it after an accident.
func TestAHundredDevicesLeaveNothingBehind(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		allowPort80(t)
		s := start(t, asSidecar(t, program(sidecarEnvironment(t))), imdsAddr)
		guest := netnstest.New(t)
		replaceDevice := func() {
			makeEndpoint(t, guest)
			s.log.wait(t, "msg=listening")
			s.log.wait(t, "msg=listening")
			guest.Do(t, ask)
			guest.Do(t, askIPv6)
			if err := netnstest.DeleteLink("veth-imds"); err != nil {
				t.Fatal(err)
			}
			s.log.wait(t, `msg=waiting for="device veth-imds"`)
			s.log.wait(t, `msg=waiting for="device veth-imds"`)
		}
		replaceDevice()
		before := s.holdings(t)
		for range 100 {
			replaceDevice()
		}
		s.awaitHoldings(t, before)
		s.stop(t)
	})
}

// holdings are what a process has that a leak would add to.
type holdings struct{ goroutines, descriptors int }

// tellHoldings has the test binary, where it is imds-server, write what it
// holds to its log at each SIGUSR1.
func tellHoldings() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			descriptors, err := os.ReadDir("/proc/self/fd")
			fmt.Fprintln(os.Stderr, "holding", runtime.NumGoroutine(), len(descriptors), err)
		}
	}()
}

// holdings asks the process what it holds.
func (s *server) holdings(t *testing.T) (h holdings) {
	t.Helper()
	s.signal(t, syscall.SIGUSR1)
	s.log.wait(t, "holding ")
	s.log.mu.Lock()
	line := s.log.lines[s.log.waited-1]
	s.log.mu.Unlock()
	var problem string
	if _, err := fmt.Sscanf(line, "holding %d %d %s", &h.goroutines, &h.descriptors, &problem); err != nil || problem != "<nil>" {
		t.Fatalf("%v in %q", err, line)
	}
	return h
}

// awaitHoldings waits until the process holds no more than it did. A connection
// whose device is gone stays until its time is over; what leaked would never go.
func (s *server) awaitHoldings(t *testing.T, want holdings) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		have := s.holdings(t)
		if have.goroutines <= want.goroutines && have.descriptors <= want.descriptors {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("imds-server holds %+v, before %+v", have, want)
		}
		time.Sleep(10 * time.Millisecond) // the end of a time limit has no event
	}
}
