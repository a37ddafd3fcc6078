package guests

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	// firstLimit is how soon after the guest runs again the target has to have answered its first question.
	firstLimit = time.Second
	// gapLimit is how long the guest may go without an answer by its own clock, and that much only because an
	// emulated guest on a busy machine gets no processor for seconds now and then.
	gapLimit = 5 * time.Second
)

// migrated is what was seen of one migration.
type migrated struct {
	from, to string // pods
	moved    qemu.Migration
	first    time.Duration // from the target's RESUME to the first answer that the target gave

	// What the guest had from asking ten times a second, before, during and after.
	identity, token, kept guestagent.Asked

	routesBefore, routesAfter string
	arp                       []string // requests of the guest's for the endpoint's MAC
	endpoint                  string   // the guest's neighbour entry of the endpoint at the end; empty: none
	gateway                   [2]guestagent.Got
}

// migrations is a VM's way there and back. The guest's routes are DHCP's on the way there; on the way back it has
// that of zeroconf, too, as some distributions make it, and asks the endpoint on the link.
type migrations [2]migrated

// A VM goes to a pod on another node, and back to a third pod on the first, while it asks. All pods are on one LAN, with
// the guest's MAC and, in bridge binding, its address in each.
func TestMigration(t *testing.T) {
	t.Parallel()
	for _, way := range bridged {
		t.Run(string(way.way)+"/"+string(way.binding), func(t *testing.T) {
			t.Parallel()
			var m migrations
			if !results.Skipping() {
				useProcessors(t, 2)
				m = migrate(t, way.way, way.binding)
			}
			for _, c := range []struct {
				name, proves string
				judge        func(*testing.T, migrations)
			}{
				{"first", "from RESUME in the target to its first answer; there / back", answeredSoon},
				{"gap", "the longest time between two answers, by the guest's clock", shortGap},
				{"lost", "requests lost of all, each on a connection of its own: at most the one in flight", lostInFlight},
				{"kept", "a connection that was kept open is reset, and the next request answered", resetKept},
				{"identity", "from the first answer on, who it is comes from the target pod", toldIdentity},
				{"token", "from the first answer on, the token is the target pod's", gaveToken},
				{"arp", "the ARP entry stays right, and is not asked for anew", keptARP},
				{"unharmed", "the VM's routes and its way to its gateway are as before", keepsOwnNetwork},
			} {
				results.Check(t, groupIn(way.way, "migration")+"/"+string(way.binding), c.name, c.proves, func(t *testing.T) { c.judge(t, m) })
			}
		})
	}
}

func migrate(t *testing.T, way vmtest.WiredBy, binding podnet.Binding) (seen migrations) {
	lan, err := podnet.NewLAN()
	check(t, err)
	t.Cleanup(func() { check(t, lan.Close()) })
	serveGateway(t, lan)
	pod := func(name, address string) *vmtest.VM {
		// The guest's MAC is that of the VMI.
		network := podnet.Options{Binding: binding, GuestMAC: []byte{0x52, 0x54, 0x00, 0x0a, 0x0b, 0x0c}}
		if binding == podnet.Masquerade {
			network.Address = netip.MustParseAddr(address)
		}
		v := env.New(t, vmtest.Options{WiredBy: way, Network: network, Pod: "virt-launcher-vm-" + name})
		check(t, lan.Attach(v.Net))
		v.StartSidecars()
		v.Wire()
		// KubeVirt begins to migrate when the target's pod runs, and that takes seconds.
		ctx, cancel := context.WithTimeout(t.Context(), vmtest.Patience)
		defer cancel()
		check(t, v.Init.AwaitLog(ctx, "msg=wired"))
		check(t, v.Server.AwaitLog(ctx, "listening address=169.254.169.254"))
		return v
	}
	source := pod("source", "10.244.1.5")
	source.Boot()
	source.Configure("eth0")
	target := pod("target", "10.244.1.6")
	seen[0] = migrateTo(t, source, target)
	target.Shell("ip route add 169.254.0.0/16 dev eth0")
	seen[1] = migrateTo(t, target, pod("back", "10.244.1.7"))
	return seen
}

// serveGateway answers on port 80 of the pods' gateway: that is the VM's own network.
func serveGateway(t *testing.T, lan *podnet.LAN) {
	listener, err := lan.Gateway.Listen(t.Context(), "tcp", ":80")
	check(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

// addressesAndRoutes shows what the guest has of its own network.
const addressesAndRoutes = "ip -4 -o addr show eth0; ip route"

// gatewayURL is where the guest asks its gateway.
var gatewayURL = "http://" + podnet.NeighbourAddr.String() + "/"

// steady is how many answers in a row the guest has before and after.
const steady = 10

// migrateTo moves the guest while it asks. The pod that it leaves ends before the asking does.
func migrateTo(t *testing.T, source, target *vmtest.VM) migrated {
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Patience)
	defer cancel()
	var m migrated
	m.from, m.to = source.Pod(), target.Pod()
	m.routesBefore = source.Shell(addressesAndRoutes)
	source.AwaitAnswers(1)
	m.gateway[0] = source.GetURL(gatewayURL)

	sniff, err := source.Guest.Agent.Sniff(ctx, guestagent.Sniff{Interface: "eth0", EtherType: unix.ETH_P_ARP})
	check(t, err)
	identity, token := source.Ask("/v1/identity", 10), source.Ask("/v1/token", 10)
	kept, err := source.Guest.Agent.Ask(ctx, guestagent.Ask{Get: guestagent.Get{URL: vmtest.MetadataURL + "/healthz"}, Rate: 10, Keep: true})
	check(t, err)
	answers, err := podnet.Capture(target.Net.Pod, "veth-imds")
	check(t, err)
	firstAnswer := make(chan error, 1)
	var answered time.Time
	go func() {
		err := answers.Wait(ctx, isGoodAnswer)
		answered = time.Now()
		firstAnswer <- err
	}()

	source.AwaitAnswers(steady)
	m.moved = source.Migrate(target)
	if err := <-firstAnswer; err != nil {
		t.Errorf("the target has given no answer: %v", err)
	}
	m.first = answered.Sub(m.moved.Resumed)
	_, err = answers.Stop()
	check(t, err)
	source.End()
	target.AwaitAnswers(steady)

	m.identity, m.token, m.kept = target.Stop(identity), target.Stop(token), target.Stop(kept)
	sniffed, err := sniff.Stop(ctx)
	check(t, err)
	for _, frame := range sniffed.Frames {
		if frame.Outgoing && asksForEndpoint(frame.Data) {
			m.arp = append(m.arp, fmt.Sprintf("%s: %x", frame.At, frame.Data))
		}
	}
	m.endpoint = target.Shell("ip neigh show | grep '^169.254.169.254 ' || true")
	m.routesAfter = target.Shell(addressesAndRoutes)
	m.gateway[1] = target.GetURL(gatewayURL)
	t.Logf("%s to %s: stood still for %s; first answer %s after RESUME", m.from, m.to, m.moved.Downtime(), m.first)
	return m
}

// isGoodAnswer says whether the endpoint has answered with 200 in a frame.
func isGoodAnswer(f podnet.Frame) bool {
	return f.Outgoing && bytes.Contains(f.Data, []byte("HTTP/1.1 200 OK"))
}

// asksForEndpoint says whether a frame is an ARP request for the endpoint's MAC (RFC 826).
func asksForEndpoint(frame []byte) bool {
	const operation, target = 14 + 6, 14 + 24
	return len(frame) >= target+4 && frame[operation+1] == 1 &&
		bytes.Equal(frame[target:target+4], podnet.MetadataAddr.AsSlice())
}

func answeredSoon(t *testing.T, m migrations) {
	results.Figure(t, "%d / %d ms", m[0].first.Milliseconds(), m[1].first.Milliseconds())
	for _, leg := range m {
		if leg.first > firstLimit {
			t.Errorf("to %s: %s", leg.to, leg.first)
		}
	}
}

func shortGap(t *testing.T, m migrations) {
	results.Figure(t, "%d / %d ms", m[0].longestGap().Milliseconds(), m[1].longestGap().Milliseconds())
	for _, leg := range m {
		if leg.longestGap() > gapLimit {
			t.Errorf("to %s: %s", leg.to, leg.longestGap())
		}
	}
}

func (m migrated) longestGap() time.Duration { return max(m.identity.Gap, m.token.Gap) }

func lostInFlight(t *testing.T, m migrations) {
	lost, sent := 0, 0
	for _, leg := range m {
		for _, asked := range []guestagent.Asked{leg.identity, leg.token} {
			sent += asked.Sent
			lost += asked.Sent - asked.Answered
			// A reset where its packets had yet to be acknowledged. Where only the answer was under way, nobody is
			// left to send it, as with any TCP connection that does not migrate, and the client waits.
			if asked.Sent-asked.Answered > 1 || asked.Failures[guestagent.Reset]+asked.Failures[guestagent.Timeout] != asked.Sent-asked.Answered {
				t.Errorf("to %s: %v, the first: %+v", leg.to, asked.Failures, asked.Lost)
			}
		}
	}
	results.Figure(t, "%d of %d", lost, sent)
}

func resetKept(t *testing.T, m migrations) {
	for _, leg := range m {
		if len(leg.kept.Lost) != 1 || leg.kept.Failures[guestagent.Reset] != 1 {
			t.Errorf("to %s: %v, want one reset: %+v", leg.to, leg.kept.Failures, leg.kept.Lost)
			continue
		}
		if leg.kept.Gap > gapLimit {
			t.Errorf("to %s: no answer for %s", leg.to, leg.kept.Gap)
		}
	}
	results.Figure(t, "reset, %d / %d ms", m[0].kept.Gap.Milliseconds(), m[1].kept.Gap.Milliseconds())
}

func toldIdentity(t *testing.T, m migrations) {
	for _, leg := range m {
		expectHandOver(t, leg.identity.Bodies, `"podName":"`+leg.from+`"`, `"podName":"`+leg.to+`"`)
	}
}

func gaveToken(t *testing.T, m migrations) {
	for _, leg := range m {
		var tokens []string
		for _, body := range leg.token.Bodies {
			tokens = append(tokens, vmtest.TokenID(body.Text))
		}
		if want := []string{leg.from + "-1", leg.to + "-1"}; strings.Join(tokens, " ") != strings.Join(want, " ") {
			t.Errorf("the tokens' jti were %q one after the other, want %q", tokens, want)
		}
	}
}

// expectHandOver fails the check unless all answers up to one had the first text in them, and all after it the
// second.
func expectHandOver(t *testing.T, bodies []guestagent.Body, first, second string) {
	if len(bodies) != 2 || !strings.Contains(bodies[0].Text, first) || !strings.Contains(bodies[1].Text, second) {
		t.Errorf("the answers were %+v, want %s and then %s", bodies, first, second)
	}
}

func keptARP(t *testing.T, m migrations) {
	for _, leg := range m {
		if len(leg.arp) > 0 {
			t.Errorf("to %s: the guest has asked %d times, at %s", leg.to, len(leg.arp), leg.arp)
		}
	}
	// By DHCP's routes the guest needs no entry; it may have one from the endpoint's own ARP request.
	if !strings.Contains(m[1].endpoint, podnet.EndpointMAC.String()) {
		t.Errorf("on the link the neighbour entry of the endpoint is %q, want %s", m[1].endpoint, podnet.EndpointMAC)
	}
}

func keepsOwnNetwork(t *testing.T, m migrations) {
	for _, leg := range m {
		if leg.routesBefore != leg.routesAfter {
			t.Errorf("to %s: the guest's addresses and routes were\n%sand are\n%s", leg.to, leg.routesBefore, leg.routesAfter)
		}
		for _, got := range leg.gateway {
			if got.Status != http.StatusOK {
				t.Errorf("to %s: the gateway answered %d, %s: %s", leg.to, got.Status, got.Failure, got.Detail)
			}
		}
	}
}
