package podnet

import (
	"fmt"
	"os"
	"testing"
)

// unavailable is why pods cannot be built here. nil: they can.
var unavailable error

// Main is for a package's TestMain, and m a *testing.M. As root it runs the tests. As an ordinary
// user it runs the test binary once more in a user namespace. Where neither can
// build a pod it says what would help, and fails if CI=true; otherwise the
// tests that need a pod skip (see [Require]). It does not return.
func Main(m interface{ Run() int }) {
	if os.Geteuid() != 0 && !Inside() {
		code, err := Rerun(0)
		if err == nil {
			os.Exit(code)
		}
		unavailable = err
	} else {
		unavailable = Available()
	}
	if unavailable != nil {
		fmt.Fprintln(os.Stderr, "podnet:", unavailable)
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// Available says whether pods can be built by this process, and if not, what
// would help.
func Available() error {
	probe, err := NewNamespace("probe")
	if err != nil {
		return NamespacesRefused(err)
	}
	return probe.Close()
}

// Require is the first line of a test that needs a pod: where none can be built
// it skips, or fails if CI=true.
func Require(t testing.TB) {
	t.Helper()
	if unavailable != nil {
		Unavailable(t, unavailable)
	}
}

// Unavailable ends a test that cannot run here: in CI that is a failure.
func Unavailable(t testing.TB, why error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
