// Package netnstest runs a test in a network namespace of its own, with all of its
// process, for code that opens sockets whenever and wherever it likes; and makes
// links and addresses in the caller's namespace.
package netnstest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// insideVariable marks the process that runs in the namespace.
const insideVariable = "NETNSTEST_INSIDE"

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
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	podnet.Isolate(cmd, unix.CLONE_NEWNET)
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit), exit != nil && exit.ExitCode() == unableStatus:
		podnet.Unavailable(t, podnet.NamespacesRefused(fmt.Errorf("%w: %s", err, output)))
	case err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())):
		t.Fatalf("in its namespace: %v\n%s", err, output)
	}
	t.Logf("in its namespace:\n%s", strings.TrimSpace(string(output)))
}

// Namespace is another network namespace than that of the process.
type Namespace struct{ *podnet.Namespace }

// New returns a network namespace in which lo is up. It lives until the test
// ends.
func New(t *testing.T) *Namespace {
	t.Helper()
	n, err := podnet.NewNamespace("other")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return &Namespace{n}
}

// Do runs function in the namespace, and ends the test if it returns an error.
// Sockets that it opens on its own goroutine stay in the namespace.
func (n *Namespace) Do(t *testing.T, function func() error) {
	t.Helper()
	if err := n.Namespace.Do(function); err != nil {
		t.Fatal(err)
	}
}
