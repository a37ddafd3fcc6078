package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// Whoever changes the network all day does not fill the log: each kind of line has its
// bound, and the next that is written tells how many were not.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := reporter{log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}
		bridge := wiring.Wiring{Bridge: wiring.Link{Name: "k6t-eth0"}}
		const toggles = 500
		for range toggles {
			r.tell(outcome{wiring: bridge})
			r.tell(outcome{wiring: wiring.Wiring{Waiting: "a bridge"}})
			r.tell(outcome{err: errors.New("no memory")})
		}
		if lines := strings.Count(log.String(), "\n"); lines != 3*linesAtOnce {
			t.Errorf("%d lines after %d toggles, want %d", lines, toggles, 3*linesAtOnce)
		}
		log.Reset()
		time.Sleep(lineEvery)
		r.tell(outcome{wiring: bridge})
		if want := fmt.Sprintf("msg=wired bridge=k6t-eth0 guests=\"\" uplinks=\"\" mtu=0 ipv6=false took=0s more=%d\n", toggles-linesAtOnce); !strings.HasSuffix(log.String(), want) {
			t.Errorf("%q does not end in %q", &log, want)
		}
	})
}

// What only some guests miss is told once, beside the line of those that are served.
func TestServedInPartIsTold(t *testing.T) {
	var log bytes.Buffer
	r := reporter{log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}
	o := outcome{wiring: wiring.Wiring{Bridge: wiring.Link{Name: "k6t-eth0"}}, lesser: errors.New("no IPv6")}
	r.tell(o)
	r.tell(o)
	if got := log.String(); strings.Count(got, "msg=wired") != 1 || strings.Count(got, `msg="served in part" reason="no IPv6"`) != 1 {
		t.Errorf("%s", got)
	}
}

// After a network that flapped, the last line is of the state that is.
func TestLastLineIsTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := reporter{log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}
		served, waiting := outcome{wiring: wiring.Wiring{Bridge: wiring.Link{Name: "k6t-eth0"}}}, outcome{wiring: wiring.Wiring{Waiting: "a bridge"}}
		owed := false
		for range 2 * linesAtOnce {
			r.tell(served)
			owed = r.tell(waiting)
		}
		if !owed {
			t.Fatal("the last state was told, so this proves nothing")
		}
		time.Sleep(lineEvery)
		log.Reset()
		if r.tell(waiting) || !strings.Contains(log.String(), "nobody to serve yet") {
			t.Errorf("it is not told later: %q", &log)
		}
	})
}
