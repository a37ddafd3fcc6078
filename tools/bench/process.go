package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// process is a program that runs.
type process struct {
	command *exec.Cmd
	log     log
}

// log is what a program has said.
type log struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.String()
}

// last is the end of it, for a message.
func (l *log) last() string {
	said := l.String()
	return said[max(0, len(said)-1000):]
}

// start runs a program until the comparison ends, in a network namespace, nil: in ours.
func (b *bench) start(in *podnet.Namespace, environment []string, program string, args ...string) (*process, error) {
	p := &process{command: exec.Command(program, args...)}
	p.command.Env = environment
	p.command.Stdout, p.command.Stderr = &p.log, &p.log
	start := p.command.Start
	if in != nil {
		start = func() error { return in.Start(p.command) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	b.later(p.stop)
	return p, nil
}

// stop ends the program. It may be called twice.
func (p *process) stop() {
	p.command.Process.Kill()
	p.command.Wait()
}

// processorTime is what all threads have used.
func (p *process) processorTime() (time.Duration, error) {
	var used unix.Timespec
	// The clock of another process, MAKE_PROCESS_CPUCLOCK of linux/posix-timers_types.h.
	clock := int32(^p.command.Process.Pid)<<3 | 2
	if err := unix.ClockGettime(clock, &used); err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.command.Path, err)
	}
	return time.Duration(used.Nano()), nil
}

// memory returns how much of it is the process's own, and how much is resident, in MB.
func (p *process) memory() (private, resident float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		var kB float64
		fmt.Sscan(value, &kB)
		switch name {
		case "RssAnon":
			private = kB / 1000
		case "VmRSS":
			resident = kB / 1000
		}
	}
	return private, resident, nil
}

// await waits until a condition holds, for as long as nothing takes that works.
func (p *process) await(what string, holds func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not %s; it said: %s", p.command.Path, what, p.log.last())
		}
	}
	return nil
}

// freeAddress is one of lo that nobody listens on.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
