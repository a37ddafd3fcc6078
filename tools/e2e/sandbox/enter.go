package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// entry is what a process that enters the sandbox has to know.
type entry struct {
	Pid     int // of the sandbox's pid 1
	Cgroup  string
	Command []string
}

// signalKill is sent to a process that entered to have it kill the command. Its own death would not be
// enough: the command would go on, as a child of the machine's init.
const signalKill = syscall.SIGUSR1

// enter joins the sandbox's namespaces and runs a command there, in a child, since a process cannot change its
// own pid namespace. It ends as the command ended: with its exit status, 128 and the number of the signal that
// ended it, or 127, as a shell does, when there is no such command.
func enter(e entry) error {
	// Caught, not ignored: a caught signal is back to its default in the child.
	received := make(chan os.Signal, 8)
	signal.Notify(received, signalKill, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)

	// Entering a mount namespace also moves to its root folder.
	folder, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := joinCgroups(e.Cgroup); err != nil {
		return err
	}
	// The namespaces are those of one thread.
	runtime.LockOSThread()
	if err := joinNamespaces(e.Pid); err != nil {
		return err
	}
	command := exec.Command(e.Command[0], e.Command[1:]...)
	command.Dir = folder
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(127)
	}
	go pass(received, command.Process)

	err = command.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	status := command.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
	return nil
}

// pass hands signals on to a process.
func pass(signals <-chan os.Signal, to *os.Process) {
	for received := range signals {
		switch received {
		case signalKill:
			to.Kill()
		case syscall.SIGINT, syscall.SIGQUIT:
			// From the terminal, which sends them to the command too.
		default:
			to.Signal(received)
		}
	}
}

// joinNamespaces moves the calling thread into the mount and network namespaces of a process, and its future
// children into that process's pid namespace.
func joinNamespaces(pid int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("the sandbox has ended: %w", err)
	}
	defer unix.Close(process)
	// A thread that shares its root folder with others may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter sandbox: %w", err)
	}
	if err := unix.Setns(process, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter sandbox: %w", err)
	}
	return nil
}
