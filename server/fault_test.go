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
	"unsafe"
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

// descriptors counts what a server has open.
func (s *server) descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// await waits for what nothing tells of.
func (s *server) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server does not %s", what)
		}
	}
}

// With no descriptor left the server waits for one, uses no processor meanwhile, and
// answers as soon as there is one.
func TestNoDescriptorLeft(t *testing.T) {
	s := startServer(t, freshToken())
	s.wantAnswer(t, "/v1/token", 200)
	usual := s.descriptors(t)
	few := syscall.Rlimit{Cur: uint64(usual) + 3, Max: uint64(usual) + 3}
	if err := prlimit(s.Process.Pid, syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	var held []*guest
	for range 40 { // the kernel completes connections that nobody accepts
		g, err := s.dial()
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, g)
	}
	s.await(t, "have no descriptor left", func() bool { return s.descriptors(t) >= usual+2 })
	before := s.processorTime(t)
	time.Sleep(2 * time.Second) // what is judged is that nothing is done
	if used := s.processorTime(t) - before; used > 40 {
		t.Errorf("%d ticks of processor time in two seconds without a descriptor", used)
	}
	for _, g := range held {
		g.Close()
	}
	s.await(t, "close what the guest has closed", func() bool { return s.descriptors(t) <= usual })
	s.wantAnswer(t, "/v1/token", 200)
	lines := s.stop(t)
	if len(lines) > 50 {
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

func prlimit(pid, resource int, limit *syscall.Rlimit) error {
	_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), uintptr(resource), uintptr(unsafe.Pointer(limit)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
