package node

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// A node whose kernel lacks what imds-init needs gets it piece by piece. Before each piece nothing is served, and
// imds-init says once what is missing; the VM's own network works all the while.

// healLimit is how soon after its last module is there the guest has to be served: imds-init tries again after a
// second, and what takes 10 ms on a real node takes an emulated one up to a second, several times.
const healLimit = 10 * time.Second

// quietTime is how long nothing more may be said: three attempts.
const quietTime = 3200 * time.Millisecond

// lack is what was seen while a piece was missing.
type lack struct {
	errors []string // lines of imds-init's log
	served hand.Got
	links  string // of the project's in the pod
	probe  error
}

// lacking is all that was seen.
type lacking struct {
	without []lack   // of each of the pieces
	served  hand.Got // at the end
	healed  time.Duration
	own     hand.Asked // from before the sidecars until the end
}

// pieces are the lists of modules that come one after the other.
var pieces = []string{nfnetlink, nfTables, expressions}

// WithoutNFTables returns the checks of a kernel that lacks what imds-init needs.
func WithoutNFTables(s *stage.Stage) []suite.Check {
	check := stage.Aspects(func(t *suite.T) *lacking { return loadPieces(t, s) })
	return []suite.Check{
		check("error", "imds-init says what the kernel lacks and what would help, once for each thing that it lacks", saysOnce),
		check("served", "nothing is served, and nothing of the endpoint is there", servesNothing),
		check("probe", "the liveness probe succeeds", staysAlive),
		check("unharmed", "requests in the VM's own network that were lost meanwhile", harmsNothing),
		check("heal", "from the kernel's having it all to the guest's first answer", heals),
	}
}

func loadPieces(t *suite.T, s *stage.Stage) *lacking {
	n := start(t, s, network)
	n.rotate("node-1", time.Hour)
	seen := new(lacking)
	own := n.ask("guest", "http://"+podnet.NeighbourAddr.String()+"/", false)
	n.startSidecars()
	errorsBefore := 0
	for _, piece := range pieces {
		n.awaitErrors(errorsBefore + 1)
		n.shell(fmt.Sprintf("sleep %.1f", quietTime.Seconds()))
		var here lack
		lines := n.logged("imds-init", "level=ERROR")
		here.errors, errorsBefore = lines[errorsBefore:], len(lines)
		here.served = n.get("guest", "/healthz", 500*time.Millisecond)
		here.links = n.shell("nsenter -n/tmp/pod ip -o link | grep imds || true")
		here.probe = n.probe()
		seen.without = append(seen.without, here)
		n.load(piece)
	}
	begin := time.Now()
	for seen.served.Status != http.StatusOK && time.Since(begin) < stage.Patience {
		seen.served = n.get("guest", "/healthz", 500*time.Millisecond)
	}
	seen.healed = time.Since(begin)
	seen.own = n.stop(own)
	t.Logf("imds-init said:\n%s", n.shell("cat /tmp/imds-init.log"))
	t.Logf("imds-server said:\n%s", n.shell("cat /tmp/imds-server.log"))
	return seen
}

// awaitErrors waits until imds-init's log has that many errors.
func (n *node) awaitErrors(count int) {
	n.await("test $(grep -c level=ERROR /tmp/imds-init.log) -ge " + strconv.Itoa(count))
}

func saysOnce(t *suite.T, seen *lacking) {
	var counts []string
	for i, here := range seen.without {
		counts = append(counts, strconv.Itoa(len(here.errors)))
		if len(here.errors) != 1 {
			t.Errorf("without %s it said %d times:\n%s", pieces[i], len(here.errors), strings.Join(here.errors, "\n"))
			continue
		}
		for _, want := range []string{"not served", "kernel lacks nf_tables", "load or enable"} {
			if !strings.Contains(here.errors[0], want) {
				t.Errorf("without %s, no %q in: %s", pieces[i], want, here.errors[0])
			}
		}
	}
	t.Figure("%s", strings.Join(counts, " + "))
}

func servesNothing(t *suite.T, seen *lacking) {
	for i, here := range seen.without {
		if here.served.Failure == "" {
			t.Errorf("without %s the guest got %+v", pieces[i], here.served)
		}
		if here.links != "" {
			t.Errorf("without %s the pod has %s", pieces[i], here.links)
		}
	}
	t.Figure("nothing")
}

func staysAlive(t *suite.T, seen *lacking) {
	for i, here := range seen.without {
		if here.probe != nil {
			t.Errorf("without %s: %v", pieces[i], here.probe)
		}
	}
}

func harmsNothing(t *suite.T, seen *lacking) {
	if seen.own.Answered != seen.own.Sent {
		t.Errorf("%v: %+v", seen.own.Failures, seen.own.Lost)
	}
	t.Figure("%d of %d", seen.own.Sent-seen.own.Answered, seen.own.Sent)
}

func heals(t *suite.T, seen *lacking) {
	if seen.served.Status != http.StatusOK {
		t.Fatalf("the guest is not served: %+v", seen.served)
	}
	t.Figure("%d ms", seen.healed.Milliseconds())
	if seen.healed > healLimit {
		t.Errorf("more than %s", healLimit)
	}
}
