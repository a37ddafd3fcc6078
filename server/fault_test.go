package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// processorTime is what a server has used so far, in clock ticks (proc_pid_stat(5)).
func (s *server) processorTime(t *testing.T) (ticks int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	var user, system int
	fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return user + system
}

// With no descriptor left the server waits for one, uses no processor meanwhile, and
// answers as soon as there is one.
func TestNoDescriptorLeft(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddress()
	volume := tokentest.NewVolume(t, freshToken())
	cmd := exec.Command("sh", "-c", `ulimit -n 16 && exec "$0" serve`, self)
	cmd.Env = program(environment(addr, volume.TokenPath())).Env
	s := start(t, cmd, addr)
	s.log.wait(t, "msg=listening")
	s.wantAnswer(t, "/v1/token", 200)
	var held []*guest
	for range 40 { // the kernel completes connections that nobody accepts
		g, err := s.dial()
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, g)
	}
	last := held[len(held)-1]
	last.SetDeadline(time.Now().Add(time.Second))
	if status, _, err := last.ask("/healthz"); err == nil {
		t.Fatalf("the last of 40 connections is answered %d: there are descriptors left", status)
	}
	before := s.processorTime(t)
	time.Sleep(2 * time.Second) // what is judged is that nothing is done
	if used := s.processorTime(t) - before; used > 40 {
		t.Errorf("%d ticks of processor time in two seconds without a descriptor", used)
	}
	for _, g := range held {
		g.Close()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // nothing tells when it has closed its ends
		g, err := s.dial()
		if err == nil {
			var status int
			status, _, err = g.ask("/v1/token")
			g.Close()
			if err == nil && status == 200 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not recover")
		}
	}
	if lines := s.stop(t); len(lines) > 50 {
		t.Errorf("%d lines of log", len(lines))
	}
}

// The node's disk is full: no line can be written. The guest is served.
func TestLogThatCannotBeWritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	first := startServer(t, freshToken())
	first.stop(t)
	cmd := exec.Command("/proc/self/exe", "serve")
	cmd.Env, cmd.Stderr, cmd.Stdout = first.Env, full, full
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s := &server{Cmd: cmd, addr: first.addr}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // there is no line to wait for
		if g, err := s.dial(); err == nil {
			g.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not listen")
		}
	}
	s.wantAnswer(t, "/v1/token", 200)
	s.wantAnswer(t, "/nothing", 404)
}

// A server that is stopped and goes on, as with a node that is paused, answers what
// was asked meanwhile.
func TestStoppedAndContinued(t *testing.T) {
	s := startServer(t, freshToken())
	s.wantAnswer(t, "/v1/token", 200)
	s.signal(t, syscall.SIGSTOP)
	answers := make(chan error, 20)
	for range 20 {
		go func() {
			g, err := s.dial()
			if err == nil {
				var status int
				if status, _, err = g.ask("/v1/token"); err == nil && status != 200 {
					err = fmt.Errorf("status %d", status)
				}
				g.Close()
			}
			answers <- err
		}()
	}
	time.Sleep(3 * time.Second) // as long as it stands still
	s.signal(t, syscall.SIGCONT)
	for range 20 {
		if err := <-answers; err != nil && err != io.EOF {
			t.Error(err)
		}
	}
	s.wantAnswer(t, "/v1/token", 200)
	s.wantProbe(t)
}
