// Package sandbox runs programs in mount, network and pid namespaces of their own, so that a whole Kubernetes
// node can live on a machine and leave no trace on it.
//
// Three kinds of helper process make it, each this same program started again (package reexec):
//
//   - the keeper, outside, which makes the cgroups and the namespaces, and removes them when the lifeline, a
//     pipe from the process that started it, closes. So Stop, a crash and a SIGKILL take the same way out;
//   - pid 1, inside, which prepares the namespaces and then reaps what its children leave behind. When it
//     ends, the kernel ends all that runs inside and drops every mount;
//   - one that enters, for each command run inside, which is its child.
package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/reexec"
)

// Config is what a sandbox is made of.
type Config struct {
	// Name is the name of its cgroup in each hierarchy; no two sandboxes may share one.
	Name string
	// Address is the IPv4 address that the sandbox has besides 127.0.0.1.
	Address string
	// Services is the IPv4 prefix of Kubernetes' cluster IPs.
	Services string
}

// Sandbox is a running sandbox.
type Sandbox struct {
	config   Config
	pid      int // of its pid 1, as this process sees it
	keeper   *exec.Cmd
	lifeline *os.File
	messages *bytes.Buffer // what keeper and pid 1 had to say; complete once the keeper has ended
}

// Start makes a sandbox, which lives until Stop or until this process ends. It needs root.
func Start(config Config) (*Sandbox, error) {
	lifelineEnd, lifeline, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	defer lifelineEnd.Close()
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		lifeline.Close()
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	defer ready.Close()

	s := &Sandbox{config: config, lifeline: lifeline, messages: new(bytes.Buffer)}
	s.keeper = reexec.Command(context.Background(), roleKeeper, config)
	s.keeper.Stderr = s.messages
	s.keeper.ExtraFiles = []*os.File{lifelineEnd, readyEnd}
	// Out of the terminal's session: its Ctrl-C must not end the one that cleans up.
	s.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = s.keeper.Start()
	readyEnd.Close()
	if err != nil {
		lifeline.Close()
		return nil, fmt.Errorf("start sandbox: %w", err)
	}

	// The keeper writes the pid once all is made, and ends without it when that fails.
	line, err := io.ReadAll(ready)
	if err == nil {
		s.pid, err = strconv.Atoi(string(line))
	}
	if err != nil {
		if stopErr := s.Stop(); stopErr != nil {
			err = stopErr // says why there is no pid
		}
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	return s, nil
}

// Stop ends everything that runs in the sandbox and waits until nothing of it is left. It is called once.
func (s *Sandbox) Stop() error {
	s.lifeline.Close()
	if err := s.keeper.Wait(); err != nil {
		return fmt.Errorf("sandbox %s: %s (%w)", s.config.Name, strings.TrimSpace(s.messages.String()), err)
	}
	return nil
}

// Command is exec.CommandContext for a program inside the sandbox: found in the PATH of the command's Env,
// started in its Dir. Besides what exec.Cmd says:
//   - Process is the one that entered, not the program: SIGTERM and SIGHUP reach the program, and cancelling
//     the context kills it, while a SIGKILL to Process lets it go on until Stop;
//   - SIGINT and SIGQUIT are not handed on: they come from the terminal, which sends them to the program too;
//   - ExtraFiles are not handed on.
func (s *Sandbox) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	command := reexec.Command(ctx, roleEnter, entry{Pid: s.pid, Cgroup: s.config.Name, Command: append([]string{name}, args...)})
	command.Cancel = func() error { return command.Process.Signal(signalKill) }
	return command
}

// Path is where this process finds a file of the sandbox.
func (s *Sandbox) Path(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", s.pid, path)
}

// Pid is the sandbox's pid 1, as this process sees it.
func (s *Sandbox) Pid() int { return s.pid }

// Network opens the sandbox's network namespace; who opens it closes it.
func (s *Sandbox) Network() (*podnet.Namespace, error) { return podnet.NamespaceOf(s.pid) }
