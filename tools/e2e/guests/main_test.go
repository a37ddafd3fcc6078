// Package guests proves with real guest kernels that a VM finds its metadata, in every binding and through every
// accident, and that nobody else does. Its tests run with the flag -guests.
//
// A subject, such as a binding, an accident or an attack, is a row of its group's table; each of its checks is a
// subtest and a column. The bindings, accidents and attacks are lists to add to. A test makes its VM by package vmtest,
// whose documentation shows the steps, and ends with everything gone; what it waits for is an event, or a condition
// asked for in the guest.
package guests

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
)

// Names of the endpoint's two ends, of the pod network's bridge and of the guest's tap in the pod.
const (
	endpointDevice = "veth-imds"
	endpointPort   = "veth-imds-br"
	bridgeDevice   = "k6t-eth0"
	guestTap       = "tap0"
)

var (
	withGuests = flag.Bool("guests", false, "run the tests with guests in QEMU: as root, about ten minutes")
	env        *vmtest.Environment // what all tests share
	check      = vmtest.Check
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if !*withGuests {
		results.SkipAll("it needs a guest: go test ./guests -guests")
		return results.Main(m, "checks.txt", results.BySubject)
	}
	var err error
	if env, err = vmtest.Open(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer env.Close()
	flag.Set("test.parallel", "1000") // useProcessors decides
	return results.Main(m, "checks.txt", results.BySubject)
}

// processors are those that the guests of all tests keep busy at a time: emulation takes a whole one.
var processors = semaphore.NewWeighted(2)

// useProcessors waits until a test can have some of the processors until it ends: one for its guest, or both where it
// judges time. What takes minutes, with a guest that does little, needs none.
func useProcessors(t *testing.T, n int64) {
	check(t, processors.Acquire(t.Context(), n))
	t.Cleanup(func() { processors.Release(n) })
}

// ways are those in which a guest can get its path. What depends on the way is shown in both; what does not, in the
// first alone: both make the same rules, links, routes and addresses (TestRulesAsText in netsetup).
var ways = []vmtest.WiredBy{vmtest.BySidecar, vmtest.ByNodeAgent}

// groupIn is the name of a group of checks in one of the ways.
func groupIn(way vmtest.WiredBy, group string) string {
	if way == vmtest.BySidecar {
		return group
	}
	return group + " by " + string(way)
}

func requireAnswer(t *testing.T, got guestagent.Got) {
	t.Helper()
	if got.Failure != "" || got.Status != 200 {
		t.Fatalf("no answer: status %d %s %s %s", got.Status, got.Failure, got.Detail, got.Body)
	}
}

func requireToken(t *testing.T, got guestagent.Got, want string) {
	t.Helper()
	requireAnswer(t, got)
	if tokenIn(got.Body) != want {
		t.Errorf("another token than the volume's: %q", got.Body)
	}
}

// tokenIn is the token in an answer of /v1/token. Empty: there is none.
func tokenIn(body string) string {
	var answer struct{ Token string }
	json.Unmarshal([]byte(body), &answer)
	return answer.Token
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
