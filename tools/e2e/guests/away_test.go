package guests

import (
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// awayTime is how long the agents are away.
const awayTime = time.Minute

// away is what was seen while two nodes had no agent, and after it.
type away struct {
	stays                 guestagent.Asked // by a guest that was served before, until it left
	starts, moved         guestagent.Got   // by one that began meanwhile, and by the first one on its new node
	startsAfter, movedNow guestagent.Got
	heal                  time.Duration // from the agents' return to the first answers of both
	leaves                error
}

// The agents of two nodes end, and are back a minute later. Meanwhile a guest goes on, a VM starts, one migrates, one
// loses its link, and one ends.
func TestAgentAway(t *testing.T) {
	t.Parallel()
	var seen *away
	if !results.Skipping() {
		seen = agentAway(t)
	}
	for _, c := range []struct {
		name, proves string
		judge        func(*testing.T, *away)
	}{
		{"served", "a guest that was served goes on being served; requests lost", func(t *testing.T, s *away) {
			results.Figure(t, "%d of %d", s.stays.Sent-s.stays.Answered, s.stays.Sent)
			if s.stays.Answered != s.stays.Sent || s.stays.Gap > gapLimit {
				t.Errorf("%v, a gap of %s: %+v", s.stays.Failures, s.stays.Gap, s.stays.Lost)
			}
		}},
		{"started", "a VM that starts meanwhile runs unserved, and is served afterwards", func(t *testing.T, s *away) {
			requireUnanswered(t, s.starts)
			requireAnswer(t, s.startsAfter)
		}},
		{"migrated", "so does one that comes from another node, whose link is lost there", func(t *testing.T, s *away) {
			requireUnanswered(t, s.moved)
			requireAnswer(t, s.movedNow)
			results.Figure(t, "%s", milliseconds(s.heal))
		}},
		{"ended", "a VM that ends meanwhile leaves nothing of the sidecars' and the agent's behind", func(t *testing.T, s *away) {
			check(t, s.leaves)
		}},
	} {
		results.Check(t, "agent/away", c.name, c.proves, func(t *testing.T) { c.judge(t, seen) })
	}
}

func requireUnanswered(t *testing.T, got guestagent.Got) {
	t.Helper()
	if got.Failure == "" {
		t.Errorf("without an agent the guest is answered with status %d: %s", got.Status, got.Body)
	}
}

func agentAway(t *testing.T) *away {
	seen := new(away)
	useProcessors(t, 1)
	network := podnet.Options{Binding: podnet.Masquerade}
	by := func(name string, beside *vmtest.VM) vmtest.Options {
		return vmtest.Options{WiredBy: vmtest.ByNodeAgent, Name: name, Network: network, Beside: beside}
	}
	first := env.Start(t, by("first", nil))
	requireAnswer(t, first.Get("/healthz"))
	other := env.New(t, by("other", nil)) // the first VM of another node
	other.StartSidecars()
	ends := env.New(t, by("ends", first))
	ends.StartSidecars()
	ends.Wire()
	check(t, ends.Server.AwaitLog(t.Context(), "wired by the agent"))

	check(t, first.Init.Stop())
	check(t, other.Init.Stop())
	returned := time.After(awayTime)
	asking := first.Ask("/v1/token", 10)
	starts := env.New(t, by("starts", first))
	starts.Expected = isGuestsOwn // as without the project
	starts.StartSidecars()
	starts.Wire()
	starts.Boot()
	starts.Configure("eth0")
	seen.starts = starts.Request(unserved)
	ends.End()
	seen.leaves = first.Server.Check()
	<-returned
	seen.stays = first.Stop(asking)

	target := env.New(t, by("first", other))
	target.Expected = isGuestsOwn
	target.StartSidecars()
	target.Wire()
	first.Migrate(target)
	seen.moved = target.Request(unserved)

	began := time.Now()
	check(t, first.Init.Start())
	check(t, other.Init.Start())
	check(t, target.Server.AwaitLog(t.Context(), "wired by the agent"))
	check(t, starts.Server.AwaitLog(t.Context(), "wired by the agent"))
	seen.movedNow, seen.startsAfter = target.Get("/v1/token"), starts.Get("/v1/token")
	seen.heal = time.Since(began)
	return seen
}

// unserved is a request that is not waited for as long as one that has to be answered.
var unserved = guestagent.Get{URL: vmtest.MetadataURL + "/healthz", Limit: closedPatience}
