package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/reexec"
)

// Container is a started container.
type Container struct {
	// Name is the one of its Spec.
	Name string

	cmd    *exec.Cmd
	nested bool // in a user namespace of its own
	done   chan struct{}
}

// Start starts a container in a pod's network namespace. What it writes goes to
// log. Its command runs when Start returns without an error. It ends with this
// process at the latest.
//
// In a user namespace that maps a single user, as an ordinary user's does, a
// container of another user gets a user namespace of its own, in which our user
// has its number. Supplementary groups cannot be had there, and a file that is
// ours is its own.
func Start(network *podnet.Namespace, spec Spec, log io.Writer) (*Container, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	ids, err := readIDMaps("self")
	if err != nil {
		return nil, err
	}
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setsid:     true,
	}
	mayGroup, err := groupsCanBeSet()
	if err != nil {
		return nil, err
	}
	// User 0 is always there, and owns the network.
	nested := !ids.have(spec) && (spec.UID != 0 || spec.GID != 0)
	if nested {
		nestUser(attr, spec)
	}
	c := &Container{Name: spec.Name, nested: nested, done: make(chan struct{})}
	c.cmd = reexec.Command(context.Background(), firstProcess, handover{spec, mayGroup && !nested})
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = []string{}, log, log, attr
	if err := c.begin(network); err != nil {
		return nil, fmt.Errorf("container %s: %w", spec.Name, err)
	}
	return c, nil
}

// nestUser gives the container a user namespace in which our user has its
// numbers. The ambient set keeps the capabilities to build its root for a
// process that is not user 0 there.
func nestUser(attr *syscall.SysProcAttr, spec Spec) {
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(spec.UID), HostID: os.Getuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(spec.GID), HostID: os.Getgid(), Size: 1}}
	attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
}

// begin starts this program as the container's first process (see become), and
// returns when that has become the container's command.
func (c *Container) begin(network *podnet.Namespace) error {
	failure, failureEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer failure.Close()
	c.cmd.ExtraFiles = []*os.File{failureEnd}
	err = network.Start(c.cmd)
	failureEnd.Close()
	if err != nil {
		return err
	}
	go func() {
		c.cmd.Wait() // its result is in cmd.ProcessState
		close(c.done)
	}()
	// The other end closes without a word when the command is executed.
	message, err := io.ReadAll(failure)
	if len(message) > 0 {
		err = errors.New(string(message))
	}
	if err != nil {
		c.Kill()
	}
	return err
}

// Done is closed when the container has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// PID is the number of the container's first process, as seen from here.
func (c *Container) PID() int { return c.cmd.Process.Pid }

// Signal sends a signal to the first process. One that has ended gets none.
func (c *Container) Signal(s syscall.Signal) { c.cmd.Process.Signal(s) }

// ExitCode waits for the end. It is -1 when a signal was the end.
func (c *Container) ExitCode() int {
	<-c.done
	return c.cmd.ProcessState.ExitCode()
}

// Terminate ends the container with SIGTERM, or after a while with SIGKILL. An
// error means that it did not end by itself, or with another exit code than 0.
func (c *Container) Terminate(grace time.Duration) error {
	c.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(grace):
		c.Kill()
		return fmt.Errorf("container %s was killed: it was still there %s after SIGTERM", c.Name, grace)
	}
	if code := c.ExitCode(); code != 0 {
		return fmt.Errorf("container %s ended with exit code %d", c.Name, code)
	}
	return nil
}

// Kill ends the container with SIGKILL and waits for it.
func (c *Container) Kill() {
	c.Signal(syscall.SIGKILL)
	<-c.done
}
