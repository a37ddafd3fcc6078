// Package netnstest gives a test network namespaces of its own, and links and
// addresses in them. It asks for no privilege but the right to make a user
// namespace, and for no tool.
package netnstest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// insideVariable marks the process that runs in the namespace.
const insideVariable = "IMDS_TEST_INSIDE_NETNS"

// unableStatus is the exit status of a process that may not use its namespace.
const unableStatus = 77

// Run runs test in a new network namespace, in which lo is up and nothing else
// is. It does so in another process, with the same test binary, so that all
// threads are in the namespace. Without root the process is root of a user
// namespace.
func Run(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		if err := SetUp("lo"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(unableStatus)
		}
		test(t)
		return
	}

	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit), exit != nil && exit.ExitCode() == unableStatus:
		unable(t, fmt.Errorf("%w: %s", err, output))
	case err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())):
		t.Fatalf("in its namespace: %v\n%s", err, output)
	}
	t.Logf("in its namespace:\n%s", strings.TrimSpace(string(output)))
}

// unable ends a test that cannot have a namespace: in CI that is a failure.
func unable(t *testing.T, err error) {
	t.Helper()
	text := fmt.Sprintf("cannot make a network namespace: %v; run as root, or allow user namespaces "+
		"(sysctl user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)", err)
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// Namespace is another network namespace than that of the process.
type Namespace struct {
	tid   int
	calls chan call
}

type call struct {
	function func() error
	result   chan<- error
}

// New returns a network namespace in which lo is up. It lives until the test
// ends.
func New(t *testing.T) *Namespace {
	t.Helper()
	n := &Namespace{calls: make(chan call)}
	ready := make(chan error)
	go n.run(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

// run makes the namespace for its thread alone, and calls functions on it. The
// thread ends with the goroutine, since it stays locked, and the namespace with
// the thread.
func (n *Namespace) run(ready chan<- error) {
	runtime.LockOSThread()
	err := os.NewSyscallError("unshare", syscall.Unshare(syscall.CLONE_NEWNET))
	if err == nil {
		err = SetUp("lo")
	}
	n.tid = syscall.Gettid()
	ready <- err
	for call := range n.calls {
		call.result <- call.function()
	}
}

// Do calls function in the namespace, and ends the test if it returns an error.
// Sockets that it opens on its own goroutine stay in the namespace.
func (n *Namespace) Do(t *testing.T, function func() error) {
	t.Helper()
	result := make(chan error)
	n.calls <- call{function, result}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}
