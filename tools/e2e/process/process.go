// Package process starts programs in a pod's network namespace. Each of them ends with this process, however that
// ends.
package process

import (
	"os/exec"
	"syscall"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// Process is a program that was started.
type Process struct {
	command *exec.Cmd
	ended   chan struct{}
	err     error // of its end; valid when ended is closed
}

// Start starts a command in a namespace.
func Start(in *podnet.Namespace, command *exec.Cmd) (*Process, error) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	// What the terminal sends at Ctrl-C is for this process alone.
	command.SysProcAttr.Setpgid = true
	if err := in.Start(command); err != nil {
		return nil, err
	}
	p := &Process{command: command, ended: make(chan struct{})}
	go func() {
		p.err = command.Wait()
		close(p.ended)
	}()
	return p, nil
}

// PID is the number of the process.
func (p *Process) PID() int { return p.command.Process.Pid }

// Signal sends it a signal. One that has ended gets none.
func (p *Process) Signal(s syscall.Signal) { p.command.Process.Signal(s) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err is how it ended, as exec.Cmd.Wait says it. It waits for the end.
func (p *Process) Err() error {
	<-p.ended
	return p.err
}
