// Package netns does things in network namespaces other than the process's own.
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. It lives at least until Close.
type Namespace struct {
	file *os.File
}

// Of returns the namespace that a process is in.
func Of(pid int) (*Namespace, error) { return Open(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// Open returns the namespace that a file stands for.
func Open(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return &Namespace{file}, nil
}

// New makes a namespace, in which there is nothing but a loopback interface that is down.
func New() (*Namespace, error) {
	n := new(Namespace)
	err := onThreadOfItsOwn(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Do calls f inside the namespace, on a thread that ends afterwards. Goroutines that f starts are outside.
func (n *Namespace) Do(f func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// DialContext connects from inside the namespace; the connection can then be used from outside. The host must
// be an IP address.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Run runs a command inside the namespace to its end.
func (n *Namespace) Run(command *exec.Cmd) error { return n.Do(command.Run) }

// Close gives the namespace up; what is in it lives on with the processes that are in it.
func (n *Namespace) Close() error { return n.file.Close() }

// onThreadOfItsOwn calls f on a thread that ends with it: no other goroutine gets its namespace.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread would be parked, not ended, and its namespace is what /proc/self shows: it is kept
			// busy while another does the work.
			defer runtime.UnlockOSThread()
			done <- onThreadOfItsOwn(f)
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}
