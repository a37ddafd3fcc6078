package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet/reexec"
)

// File descriptors that Start hands to the keeper, and the keeper to pid 1.
const (
	lifelineDescriptor = 3 // to the keeper: at its end of file the sandbox ends
	readyDescriptor    = 4 // to the keeper: it writes the pid of the sandbox
	preparedDescriptor = 3 // to pid 1: it writes a word once the sandbox is prepared
)

// keep is the keeper: it makes the sandbox, says so, waits for the lifeline to close (or pid 1 to end, or a
// SIGTERM) and takes the sandbox down.
func keep(config Config) error {
	lifeline := os.NewFile(lifelineDescriptor, "lifeline")
	ready := os.NewFile(readyDescriptor, "ready")
	// Pid 1 must not hold them open.
	unix.CloseOnExec(lifelineDescriptor)
	unix.CloseOnExec(readyDescriptor)

	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	closed := make(chan struct{})
	go func() {
		io.Copy(io.Discard, lifeline)
		close(closed)
	}()

	groups, err := createCgroups(config.Name)
	if err != nil {
		return errors.Join(err, groups.remove())
	}
	sandbox, err := startInit(config)
	if err != nil {
		return errors.Join(err, groups.remove())
	}
	_, err = io.WriteString(ready, strconv.Itoa(sandbox.pid))
	ready.Close()
	if err == nil {
		select {
		case <-closed:
		case <-end:
		case err = <-sandbox.ended:
			return errors.Join(fmt.Errorf("pid 1 of the sandbox ended by itself: %w", err), groups.remove())
		}
	}
	sandbox.kill()
	return errors.Join(err, groups.remove())
}

// process is pid 1 of the sandbox as the keeper sees it.
type process struct {
	pid   int
	kill  func() // returns when it and all that runs in the sandbox have ended
	ended chan error
}

// startInit starts pid 1 in new namespaces and returns when it has prepared them.
func startInit(config Config) (*process, error) {
	prepared, preparedEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer prepared.Close()
	command := reexec.Command(context.Background(), roleInit, config)
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{preparedEnd}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
	}
	err = command.Start()
	preparedEnd.Close()
	if err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()

	word, err := io.ReadAll(prepared)
	if err != nil {
		return nil, err
	}
	if len(word) == 0 {
		return nil, fmt.Errorf("pid 1 of the sandbox: %w", <-ended)
	}
	return &process{
		pid:   command.Process.Pid,
		ended: ended,
		kill: func() {
			command.Process.Kill()
			<-ended
		},
	}, nil
}
