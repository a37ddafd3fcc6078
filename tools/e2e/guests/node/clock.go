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
)

// The node's clock jumps: a day ahead, a day back, and a second back ten times a second. What imds-server decides by
// that clock is whether a token has expired; all else is by the monotonic one.

const (
	day      = 24 * time.Hour
	lifetime = time.Hour // of the tokens
	// flutters is how often the clock is set back by a second.
	flutters = 50
	// silenceLimit is server's ReadHeaderTimeout: so long it waits for a request that does not come.
	silenceLimit = 5 * time.Second
	// steadyLimit is how long the guest may go without an answer. What waits for the clock would hang for a day; an
	// emulated node that shares its processors stands still for seconds now and then.
	steadyLimit = 10 * time.Second
)

// jumps is what was seen.
type jumps struct {
	ahead        hand.Got // with the token of before
	aheadHealth  hand.Got
	aheadRotated string   // the ID of the token that was served after the kubelet's renewal
	back         hand.Got // with that token, two days before it was issued
	backRotated  string
	fluttering   []string // IDs, each after a renewal

	probes   []error // of liveness, one in each state
	silences [2]time.Duration
	asked    hand.Asked // who it is, each on a connection of its own
	kept     hand.Asked // the same on one connection
}

// ClockJumps returns the checks of a node whose clock jumps.
func ClockJumps(s *stage.Stage) []suite.Check {
	check := stage.Aspects(func(t *suite.T) *jumps { return jump(t, s) })
	return []suite.Check{
		check("ahead", "a day ahead, the token is refused as expired by the node's clock, until there is another", refusesExpired),
		check("back", "a day back, a token from the future is refused by the node's clock, until there is another", refusesFuture),
		check("flutter", "a second back ten times a second, each renewed token is served at once", servesRenewed),
		check("deadlines", "a connection without a request ends after 5 s, a day ahead / a day back", endsSilence),
		check("probe", "the liveness probe succeeds", livesOn),
		check("lost", "requests lost over all jumps, on connections of their own and on one that is kept", losesNothing),
		check("gap", "the longest time between two answers, by the guest's clock", hasNoGap),
	}
}

func jump(t *suite.T, s *stage.Stage) *jumps {
	n := start(t, s, network, nfnetlink, nfTables, expressions)
	n.rotate("first", lifetime)
	n.startSidecars()
	n.await("grep -q msg=wired /tmp/imds-init.log && grep -q msg=listening /tmp/imds-server.log")
	if got := n.get("guest", "/v1/token", 0); stage.TokenID(got.Body) != "first" {
		t.Fatalf("before any jump the guest got %+v", got)
	}
	seen := new(jumps)
	asking, kept := n.ask("guest", "/v1/identity", false), n.ask("guest", "/v1/identity", true)

	seen.silences[0] = n.silence(day)
	seen.ahead, seen.aheadHealth = n.get("guest", "/v1/token", 0), n.get("guest", "/healthz", 0)
	seen.probes = append(seen.probes, n.probe())
	n.rotate("ahead", lifetime)
	seen.aheadRotated = n.tokenID()

	seen.silences[1] = n.silence(-2 * day)
	seen.back = n.get("guest", "/v1/token", 0)
	seen.probes = append(seen.probes, n.probe())
	n.rotate("back", lifetime)
	seen.backRotated = n.tokenID()

	n.setClock(n.now().Add(day))
	n.shell(fmt.Sprintf("(for i in $(seq %d); do date -s @$(($(date +%%s) - 1)); usleep 100000; done; touch /tmp/still) >/dev/null 2>&1 </dev/null &", flutters))
	for i := range 5 {
		n.rotate(fmt.Sprintf("flutter-%d", i), lifetime)
		seen.fluttering = append(seen.fluttering, n.tokenID())
	}
	seen.probes = append(seen.probes, n.probe())
	n.await("test -e /tmp/still")

	seen.asked, seen.kept = n.stop(asking), n.stop(kept)
	t.Logf("imds-server said:\n%s", n.shell("cat /tmp/imds-server.log"))
	return seen
}

// tokenID is that of the token that the guest gets.
func (n *node) tokenID() string {
	got := n.get("guest", "/v1/token", 0)
	if id := stage.TokenID(got.Body); id != "" {
		return id
	}
	return fmt.Sprintf("none: %d %s %s", got.Status, got.Detail, got.Body)
}

// silence opens a connection from the guest, has the clock jump, and returns how long it took until the server had
// ended the connection, on which nothing came.
func (n *node) silence(jump time.Duration) time.Duration {
	output := n.shell(fmt.Sprintf(`rm -f /tmp/nothing; mkfifo /tmp/nothing; exec 3<>/tmp/nothing
		read begin _ </proc/uptime
		nsenter -n/tmp/guest nc 169.254.169.254 80 <&3 &
		usleep 500000
		date -s @$(($(date +%%s) + %d)) >/dev/null
		wait
		read end _ </proc/uptime
		echo $begin $end`, int(jump.Seconds())))
	begin, end, _ := strings.Cut(output, " ")
	from, err := strconv.ParseFloat(begin, 64)
	n.t.Check(err)
	to, err := strconv.ParseFloat(end, 64)
	n.t.Check(err)
	return time.Duration((to - from) * float64(time.Second))
}

func refusesExpired(t *suite.T, seen *jumps) {
	if seen.ahead.Status != http.StatusServiceUnavailable || seen.aheadHealth.Status != http.StatusServiceUnavailable {
		t.Errorf("with an expired token it answers %+v, and of its health %+v", seen.ahead, seen.aheadHealth)
	}
	for _, want := range []string{"token-unavailable", "the token expired at ", "by the node's clock", "the kubelet renews it"} {
		if !strings.Contains(seen.ahead.Body, want) {
			t.Errorf("no %q in: %s", want, seen.ahead.Body)
		}
	}
	expectToken(t, seen.aheadRotated, "ahead")
	t.Figure("503, served")
}

func refusesFuture(t *suite.T, seen *jumps) {
	for _, want := range []string{"token-unavailable", "the token is not valid before ", "by the node's clock", "set the node's clock"} {
		if seen.back.Status != http.StatusServiceUnavailable || !strings.Contains(seen.back.Body, want) {
			t.Errorf("with a token from the future it answers %+v, want 503 and %q", seen.back, want)
		}
	}
	expectToken(t, seen.backRotated, "back")
	t.Figure("503, served")
}

func servesRenewed(t *suite.T, seen *jumps) {
	for i, id := range seen.fluttering {
		expectToken(t, id, fmt.Sprintf("flutter-%d", i))
	}
	t.Figure("%d of %d", len(seen.fluttering), len(seen.fluttering))
}

func expectToken(t *suite.T, got, want string) {
	if got != want {
		t.Errorf("the guest got the token %q, want %q", got, want)
	}
}

func endsSilence(t *suite.T, seen *jumps) {
	for _, took := range seen.silences {
		if took < silenceLimit-time.Second || took > silenceLimit+steadyLimit {
			t.Errorf("it ended after %s, want %s", took, silenceLimit)
		}
	}
	t.Figure("%.1f / %.1f s", seen.silences[0].Seconds(), seen.silences[1].Seconds())
}

func livesOn(t *suite.T, seen *jumps) {
	for _, err := range seen.probes {
		t.Check(err)
	}
	t.Figure("%d of %d", len(seen.probes), len(seen.probes))
}

func losesNothing(t *suite.T, seen *jumps) {
	for _, asked := range []hand.Asked{seen.asked, seen.kept} {
		if asked.Answered != asked.Sent {
			t.Errorf("%v: %+v", asked.Failures, asked.Lost)
		}
	}
	t.Figure("0 of %d", seen.asked.Sent+seen.kept.Sent)
}

func hasNoGap(t *suite.T, seen *jumps) {
	gap := max(seen.asked.Gap, seen.kept.Gap)
	t.Figure("%d ms", gap.Milliseconds())
	if gap > steadyLimit {
		t.Errorf("more than %s", steadyLimit)
	}
}
