package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
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
func Start(network *podnet.Namespace, spec Spec, log *os.File) (*Container, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	ids, err := readIDMaps("self")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
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
		nestUser(cmd.SysProcAttr, spec)
	}
	c := &Container{Name: spec.Name, cmd: cmd, nested: nested, done: make(chan struct{})}
	if err := c.begin(network, handover{spec, mayGroup && !nested}); err != nil {
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

// begin starts this program as the container's first process (see Init), hands
// it what it needs to know, and returns when it has become the container's
// command.
func (c *Container) begin(network *podnet.Namespace, h handover) error {
	encoded, err := json.Marshal(h)
	if err != nil {
		return err
	}
	specEnd, specHere, err := os.Pipe()
	if err != nil {
		return err
	}
	defer specHere.Close()
	errorHere, errorEnd, err := os.Pipe()
	if err != nil {
		specEnd.Close()
		return err
	}
	defer errorHere.Close()

	c.cmd.Env = []string{initVariable + "=1"}
	c.cmd.ExtraFiles = []*os.File{specEnd, errorEnd} // specFile and errorFile
	err = c.start(network)
	specEnd.Close()
	errorEnd.Close()
	if err != nil {
		return err
	}
	_, writeErr := specHere.Write(encoded)
	specHere.Close()
	// The other end closes without a word when the command is executed.
	message, readErr := io.ReadAll(errorHere)
	if len(message) > 0 {
		<-c.done
		return errors.New(string(message))
	}
	if err := errors.Join(writeErr, readErr); err != nil {
		c.Kill()
		return err
	}
	return nil
}

// start starts the process from a thread that stays until its end: the kernel
// takes the end of that thread for the end of the parent.
func (c *Container) start(network *podnet.Namespace) error {
	started := make(chan error, 1)
	go func() {
		defer close(c.done)
		err := network.Do(func() error {
			err := c.cmd.Start()
			started <- err
			if err == nil {
				c.cmd.Wait() // its result is in cmd.ProcessState
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	return <-started
}

// Done is closed when the container has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// pid is the number of the container's first process, as seen from here.
func (c *Container) pid() int { return c.cmd.Process.Pid }

// ExitCode waits for the end. It is -1 when a signal was the end.
func (c *Container) ExitCode() int {
	<-c.done
	return c.cmd.ProcessState.ExitCode()
}

// Terminate ends the container with SIGTERM, or after a while with SIGKILL. An
// error means that it did not end by itself, or with another exit code than 0.
func (c *Container) Terminate(grace time.Duration) error {
	c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
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
	c.cmd.Process.Kill() // it may have ended by itself
	<-c.done
}
