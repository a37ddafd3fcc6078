package guests

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/rootfs"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// podProgram makes the pod on the node.
const podProgram = "github.com/example/kubevirt-imds/tools/e2e/guests/node/program"

// Lists of the node's modules, in the order in which they can be loaded: what a pod's network is made of, and what
// imds-init needs besides.
const (
	network     = "network"
	nfnetlink   = "nfnetlink"
	nfTables    = "nf_tables"
	expressions = "expressions"
)

var moduleLists = []rootfs.ModuleList{
	{Name: network, Modules: []string{"bridge", "veth", "tun", "dummy"}},
	{Name: nfnetlink, Modules: []string{"nfnetlink"}},
	{Name: nfTables, Modules: []string{"nf_tables"}},
	// Without the second, nf_tables takes no rule of the bridge family that names an interface.
	{Name: expressions, Modules: []string{"nft_ct", "nft_meta_bridge"}},
}

// nodeImage makes what a node boots.
func nodeImage(t *testing.T) rootfs.Image {
	folder := t.TempDir()
	program := filepath.Join(folder, "node-pod")
	check(t, cluster.Compile(t.Context(), podProgram, program))
	image, err := env.Image().Extend(filepath.Join(folder, "initramfs"), rootfs.Extras{
		Programs: map[string]string{"node-pod": program, "imds-init": env.Program("imds-init"), "imds-server": env.Program("imds-server")},
		Modules:  moduleLists,
	})
	check(t, err)
	return image
}

// node is a guest that is a node, and the network namespaces on it are those of podnet: pod, guest, neighbour.
type node struct {
	t     *testing.T
	guest *qemu.Guest
}

// startNode boots a node with lists of modules, and makes the pod on it, in bridge binding. No sidecar runs yet.
func startNode(t *testing.T, lists ...string) *node {
	outside, err := podnet.NewNamespace("node")
	check(t, err)
	t.Cleanup(func() { outside.Close() })
	guest, err := qemu.Boot(t.Context(), qemu.Options{Image: nodeImage(t), Namespace: outside, Memory: 256})
	check(t, err)
	n := &node{t: t, guest: guest}
	t.Cleanup(n.end)
	for _, list := range lists {
		n.load(list)
	}
	n.shell("mkdir /tmp/tokens && setsid /node-pod /tmp </dev/null >/tmp/node-pod.log 2>&1 &")
	n.await("test -e /tmp/ready")
	return n
}

// end shows, where the check has failed, what was logged.
func (n *node) end() {
	if n.t.Failed() {
		logs, err := n.guest.Agent.Shell(context.WithoutCancel(n.t.Context()), "cd /tmp; tail -n 40 *.log; ip link; nsenter -n/tmp/pod ip addr")
		n.t.Logf("on the node (%v): %s", err, logs)
		n.t.Logf("its console:\n%s", n.guest.Console())
	}
	if err := n.guest.Close(); err != nil {
		n.t.Errorf("%v", err)
	}
}

func (n *node) load(list string) { n.shell("load " + list) }

// nodePatience is how long a step may take on the node that takes a second or two where its processor has no other to
// share with.
const nodePatience = 2 * time.Minute

// shell runs a command on the node that must succeed, and returns what it wrote.
func (n *node) shell(command string) string {
	ctx, cancel := context.WithTimeout(n.t.Context(), nodePatience+vmtest.Patience)
	defer cancel()
	ran, err := n.guest.Agent.Run(ctx, guestagent.Run{Command: command, Limit: nodePatience})
	check(n.t, err)
	if ran.Exit != 0 {
		n.t.Fatalf("on the node, %s: exit status %d (-1: not within %s): %s", command, ran.Exit, nodePatience, ran.Output)
	}
	return strings.TrimSpace(ran.Output)
}

// await waits on the node for what no event tells.
func (n *node) await(condition string) {
	n.shell("until " + condition + "; do usleep 25000; done")
}

// startSidecars starts both in the pod, imds-server as its user.
func (n *node) startSidecars() {
	n.shell(`setsid nsenter -n/tmp/pod /imds-init </dev/null >>/tmp/imds-init.log 2>&1 &
		setsid nsenter -n/tmp/pod -S 65532 -G 65532 env IMDS_TOKEN_PATH=/tmp/tokens/token IMDS_NAMESPACE=tenant \
			IMDS_POD_NAME=virt-launcher-vm IMDS_VM_NAME=vm IMDS_SA_NAME=vm \
			/imds-server </dev/null >>/tmp/imds-server.log 2>&1 &`)
}

// probe is the liveness probe.
func (n *node) probe() error {
	_, err := n.guest.Agent.Shell(n.t.Context(), "nsenter -n/tmp/pod -S 65532 -G 65532 /imds-server probe -live")
	return err
}

// logged returns the lines of a sidecar's log that have a text in them.
func (n *node) logged(sidecar, text string) []string {
	output := n.shell("grep -F '" + text + "' /tmp/" + sidecar + ".log || true")
	if output == "" {
		return nil
	}
	return strings.Split(output, "\n")
}

// rotate puts a token in place of the present one, issued now by the node's clock.
func (n *node) rotate(id string, lifetime time.Duration) {
	token := vmtest.Token(id, "https://kubernetes.default.svc.cluster.local", n.now(), lifetime)
	n.shell("umask 022; printf %s " + token + " >/tmp/tokens/next && mv /tmp/tokens/next /tmp/tokens/token")
}

// now is the time by the node's clock, in whole seconds.
func (n *node) now() time.Time {
	seconds, err := strconv.ParseInt(n.shell("date +%s"), 10, 64)
	check(n.t, err)
	return time.Unix(seconds, 0)
}

func (n *node) setClock(to time.Time) { n.shell(fmt.Sprintf("date -s @%d", to.Unix())) }

// get asks from inside a namespace on the node. A path alone is the endpoint's.
func (n *node) get(namespace, url string, limit time.Duration) guestagent.Got {
	got, err := n.guest.Agent.Get(n.t.Context(), request(namespace, url, limit))
	check(n.t, err)
	return got
}

func request(namespace, url string, limit time.Duration) guestagent.Get {
	if strings.HasPrefix(url, "/") {
		url = vmtest.MetadataURL + url
	}
	return guestagent.Get{URL: url, Namespace: "/tmp/" + namespace, Limit: limit}
}

// askLimit is how long one of many requests may take, for the same reason.
const askLimit = 20 * time.Second

// ask begins to ask ten times a second.
func (n *node) ask(namespace, url string, keep bool) *guestagent.Task[guestagent.Asked] {
	task, err := n.guest.Agent.Ask(n.t.Context(), guestagent.Ask{Get: request(namespace, url, askLimit), Rate: 10, Keep: keep})
	check(n.t, err)
	return task
}

func (n *node) stop(asking *guestagent.Task[guestagent.Asked]) guestagent.Asked {
	ctx, cancel := context.WithTimeout(n.t.Context(), vmtest.Patience)
	defer cancel()
	asked, err := asking.Stop(ctx)
	check(n.t, err)
	return asked
}

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
	ahead        guestagent.Got // with the token of before
	aheadHealth  guestagent.Got
	aheadRotated string         // the ID of the token that was served after the kubelet's renewal
	back         guestagent.Got // with that token, two days before it was issued
	backRotated  string
	fluttering   []string // IDs, each after a renewal

	probes   []error // of liveness, one in each state
	silences [2]time.Duration
	asked    guestagent.Asked // who it is, each on a connection of its own
	kept     guestagent.Asked // the same on one connection
}

func TestClockThatJumps(t *testing.T) {
	t.Parallel()
	var seen *jumps
	if !results.Skipping() {
		useProcessors(t, 2)
		seen = jump(t)
	}
	for _, c := range []struct {
		name, proves string
		judge        func(*testing.T, *jumps)
	}{
		{"ahead", "a day ahead, the token is refused as expired by the node's clock, until there is another", refusesExpired},
		{"back", "a day back, a token from the future is refused by the node's clock, until there is another", refusesFuture},
		{"flutter", "a second back ten times a second, each renewed token is served at once", servesRenewed},
		{"deadlines", "a connection without a request ends after 5 s, a day ahead / a day back", endsSilence},
		{"probe", "the liveness probe succeeds", livesOn},
		{"lost", "requests lost over all jumps, on connections of their own and on one that is kept", losesNothing},
		{"gap", "the longest time between two answers, by the guest's clock", hasNoGap},
	} {
		results.Check(t, "node/clock that jumps", c.name, c.proves, func(t *testing.T) { c.judge(t, seen) })
	}
}

func jump(t *testing.T) *jumps {
	n := startNode(t, network, nfnetlink, nfTables, expressions)
	n.rotate("first", lifetime)
	n.startSidecars()
	n.await("grep -q msg=wired /tmp/imds-init.log && grep -q msg=listening /tmp/imds-server.log")
	if got := n.get("guest", "/v1/token", 0); vmtest.TokenID(got.Body) != "first" {
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
	if id := vmtest.TokenID(got.Body); id != "" {
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
	check(n.t, err)
	to, err := strconv.ParseFloat(end, 64)
	check(n.t, err)
	return time.Duration((to - from) * float64(time.Second))
}

func refusesExpired(t *testing.T, seen *jumps) {
	if seen.ahead.Status != http.StatusServiceUnavailable || seen.aheadHealth.Status != http.StatusServiceUnavailable {
		t.Errorf("with an expired token it answers %+v, and of its health %+v", seen.ahead, seen.aheadHealth)
	}
	for _, want := range []string{"token-unavailable", "the token expired at ", "by the node's clock", "the kubelet renews it"} {
		if !strings.Contains(seen.ahead.Body, want) {
			t.Errorf("no %q in: %s", want, seen.ahead.Body)
		}
	}
	expectToken(t, seen.aheadRotated, "ahead")
	results.Figure(t, "503, served")
}

func refusesFuture(t *testing.T, seen *jumps) {
	for _, want := range []string{"token-unavailable", "the token is not valid before ", "by the node's clock", "set the node's clock"} {
		if seen.back.Status != http.StatusServiceUnavailable || !strings.Contains(seen.back.Body, want) {
			t.Errorf("with a token from the future it answers %+v, want 503 and %q", seen.back, want)
		}
	}
	expectToken(t, seen.backRotated, "back")
	results.Figure(t, "503, served")
}

func servesRenewed(t *testing.T, seen *jumps) {
	for i, id := range seen.fluttering {
		expectToken(t, id, fmt.Sprintf("flutter-%d", i))
	}
	results.Figure(t, "%d of %d", len(seen.fluttering), len(seen.fluttering))
}

func expectToken(t *testing.T, got, want string) {
	if got != want {
		t.Errorf("the guest got the token %q, want %q", got, want)
	}
}

func endsSilence(t *testing.T, seen *jumps) {
	for _, took := range seen.silences {
		if took < silenceLimit-time.Second || took > silenceLimit+steadyLimit {
			t.Errorf("it ended after %s, want %s", took, silenceLimit)
		}
	}
	results.Figure(t, "%.1f / %.1f s", seen.silences[0].Seconds(), seen.silences[1].Seconds())
}

func livesOn(t *testing.T, seen *jumps) {
	for _, err := range seen.probes {
		check(t, err)
	}
	results.Figure(t, "%d of %d", len(seen.probes), len(seen.probes))
}

func losesNothing(t *testing.T, seen *jumps) {
	for _, asked := range []guestagent.Asked{seen.asked, seen.kept} {
		if asked.Answered != asked.Sent {
			t.Errorf("%v: %+v", asked.Failures, asked.Lost)
		}
	}
	results.Figure(t, "0 of %d", seen.asked.Sent+seen.kept.Sent)
}

func hasNoGap(t *testing.T, seen *jumps) {
	gap := max(seen.asked.Gap, seen.kept.Gap)
	results.Figure(t, "%d ms", gap.Milliseconds())
	if gap > steadyLimit {
		t.Errorf("more than %s", steadyLimit)
	}
}

// A node whose kernel lacks what imds-init needs gets it piece by piece. Before each piece nothing is served, and
// imds-init says once what is missing; the VM's own network works all the while.

// nodeHealLimit is how soon after its last module is there the guest has to be served: imds-init tries again after a
// minute at the most, and what takes 10 ms on a real node takes an emulated one up to a second, several times.
const nodeHealLimit = 75 * time.Second

// quietTime is how long nothing more may be said: three attempts.
const quietTime = 3200 * time.Millisecond

// lack is what was seen while a piece was missing.
type lack struct {
	errors []string // lines of imds-init's log
	served guestagent.Got
	links  string // of the project's in the pod
	probe  error
}

// lacking is all that was seen.
type lacking struct {
	without []lack         // of each of the pieces
	served  guestagent.Got // at the end
	healed  time.Duration
	own     guestagent.Asked // from before the sidecars until the end
}

// pieces are the lists of modules that come one after the other.
var pieces = []string{nfnetlink, nfTables, expressions}

func TestKernelWithoutNFTables(t *testing.T) {
	t.Parallel()
	var seen *lacking
	if !results.Skipping() {
		useProcessors(t, 2)
		seen = loadPieces(t)
	}
	for _, c := range []struct {
		name, proves string
		judge        func(*testing.T, *lacking)
	}{
		{"error", "imds-init says what the kernel lacks and what would help, once for each thing that it lacks", saysOnce},
		{"served", "nothing is served, and nothing of the endpoint is there", servesNothing},
		{"probe", "the liveness probe succeeds", staysAlive},
		{"unharmed", "requests in the VM's own network that were lost meanwhile", harmsNothing},
		{"heal", "from the kernel's having it all to the guest's first answer", heals},
	} {
		results.Check(t, "node/no nf_tables", c.name, c.proves, func(t *testing.T) { c.judge(t, seen) })
	}
}

func loadPieces(t *testing.T) *lacking {
	n := startNode(t, network)
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
	for seen.served.Status != http.StatusOK && time.Since(begin) < nodeHealLimit {
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

func saysOnce(t *testing.T, seen *lacking) {
	var counts []string
	for i, here := range seen.without {
		counts = append(counts, strconv.Itoa(len(here.errors)))
		if len(here.errors) != 1 {
			t.Errorf("without %s it said %d times:\n%s", pieces[i], len(here.errors), strings.Join(here.errors, "\n"))
			continue
		}
		for _, want := range []string{"not served", "the node's kernel lacks ", "on the node: "} {
			if !strings.Contains(here.errors[0], want) {
				t.Errorf("without %s, no %q in: %s", pieces[i], want, here.errors[0])
			}
		}
	}
	results.Figure(t, "%s", strings.Join(counts, " + "))
}

func servesNothing(t *testing.T, seen *lacking) {
	for i, here := range seen.without {
		if here.served.Failure == "" {
			t.Errorf("without %s the guest got %+v", pieces[i], here.served)
		}
		if here.links != "" {
			t.Errorf("without %s the pod has %s", pieces[i], here.links)
		}
	}
	results.Figure(t, "nothing")
}

func staysAlive(t *testing.T, seen *lacking) {
	for i, here := range seen.without {
		if here.probe != nil {
			t.Errorf("without %s: %v", pieces[i], here.probe)
		}
	}
}

func harmsNothing(t *testing.T, seen *lacking) {
	if seen.own.Answered != seen.own.Sent {
		t.Errorf("%v: %+v", seen.own.Failures, seen.own.Lost)
	}
	results.Figure(t, "%d of %d", seen.own.Sent-seen.own.Answered, seen.own.Sent)
}

func heals(t *testing.T, seen *lacking) {
	if seen.served.Status != http.StatusOK {
		t.Fatalf("the guest is not served: %+v", seen.served)
	}
	results.Figure(t, "%d ms", seen.healed.Milliseconds())
	if seen.healed > nodeHealLimit {
		t.Errorf("more than %s", nodeHealLimit)
	}
}
