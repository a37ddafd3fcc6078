// Package attacks has guests and their neighbours do what they should not, each in a pod of its own, with a real
// guest in it that goes on asking honestly.
//
// An attack is a row of the table: its columns say whether the guest was served meanwhile and afterwards, what of
// the attack came to the endpoint, who was answered, what was seen on the uplink, and how the kubelet's probe fared.
// A new attack is one more entry of [attacks], with a function that does it on a [scene].
package attacks

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// attack is something hostile.
type attack struct {
	// name says who does what.
	name string
	// networks are the pods' in which it is done, each in its turn.
	networks []podnet.Options
	// stage is what else there is to say of the VM.
	stage stage.Options
	// flood: there are too many frames to record all of them; only the uplink is watched.
	flood bool
	// do does it, and leaves the guest as it was.
	do func(*scene)
}

// The networks. A masquerade pod that lists ports keeps what goes to others, which is the harder case: a neighbour's
// packets for 169.254.169.254 are then not the guest's but the pod's own.
var (
	masquerade = podnet.Options{Binding: podnet.Masquerade, Ports: []uint16{22}}
	bridge     = podnet.Options{Binding: podnet.Bridge}

	inMasquerade = []podnet.Options{masquerade}
	inBridge     = []podnet.Options{bridge}
	inBoth       = []podnet.Options{masquerade, bridge}
)

// attacks are all of them.
var attacks = []attack{
	{name: "a neighbour asks", networks: inBoth, do: neighbourAsks},
	{name: "a neighbour is the service", networks: inBoth, do: neighbourImpersonates},
	{name: "a neighbour speaks as the service", networks: inBoth, do: neighbourSpoofs},
	{name: "proxy ARP on the uplink", networks: inBoth, do: neighbourProxiesARP},
	{name: "a neighbour's VLAN tags", networks: inBoth, do: neighbourTags},
	{name: "a neighbour's fragments", networks: inBoth, do: neighbourFragments},

	{name: "a guest's VLAN tags", networks: inBoth, do: guestTags},
	{name: "a guest's fragments", networks: inBoth, do: guestFragments},
	{name: "a guest's other ways", networks: inBoth, do: guestTakesOtherWays},
	{name: "a guest with its gateway's MAC", networks: inBoth, do: guestTakesGatewayMAC},
	{name: "a guest with our MACs", networks: inBoth, do: guestTakesOurMACs},
	{name: "a guest with our address", networks: inBoth, do: guestTakesOurAddress},
	{name: "a guest with other addresses", networks: inBoth, do: guestTakesOtherAddresses},
	{name: "a guest's router advertisement", networks: inBoth, do: guestAdvertises},
	{name: "a guest with 5,000 MACs", networks: inBoth, do: guestFillsTheBridge},
	{name: "the gateway's ARP", networks: inBoth, do: guestLooksForItsGateway},

	{name: "a browser's and a proxy's requests", networks: inMasquerade, do: foreignRequests},
	{name: "a container in the guest", networks: inMasquerade, stage: stage.Options{Server: []string{"IMDS_HOP_LIMIT=1"}}, do: containerAsks},

	{name: "10,000 half-open connections", networks: inBridge, stage: limited, flood: true, do: halfOpenConnections},
	{name: "1,000 slow clients", networks: inBridge, stage: limited, flood: true, do: slowClients},
	{name: "a flood of requests", networks: inBridge, stage: limited, flood: true, do: floodOfRequests},
	{name: "a flood of refused requests", networks: inBridge, stage: limited, flood: true, do: floodOfRefusedRequests},
	{name: "a flood of frames", networks: inBridge, stage: limited, flood: true, do: floodOfFrames},
}

// limited is a VM whose sidecars have no more CPU and memory than the declared patch gives them.
var limited = stage.Options{Limited: true}

// Run does the attacks of which a column is selected: two at a time, and each that floods by itself, since it is
// about time.
func Run(ctx context.Context, s *stage.Stage, results *suite.Suite) {
	for _, flood := range []bool{false, true} {
		var rows errgroup.Group
		rows.SetLimit(map[bool]int{false: 2, true: 1}[flood])
		for _, a := range attacks {
			for _, network := range a.networks {
				if a.flood == flood {
					rows.Go(func() error { a.run(ctx, s, results, network); return nil })
				}
			}
		}
		rows.Wait() // always nil
	}
}

// run does the attack in one network.
func (a attack) run(ctx context.Context, s *stage.Stage, results *suite.Suite, network podnet.Options) {
	subject := fmt.Sprintf("attacks/%s (%s)", a.name, network.Binding)
	served, others := a.columns(s, network)
	if ctx.Err() == nil && results.Selects(subject, append(others, served)) {
		results.Must(ctx, subject, served)
		results.Run(ctx, subject, others)
	}
}

// columns are the checks of an attack. The first makes the VM, does the attack, and collects what the others judge.
func (a attack) columns(s *stage.Stage, network podnet.Options) (served suite.Check, others []suite.Check) {
	var seen *evidence
	served = suite.Check{
		Name:   "served",
		Proves: "the guest that asks honestly is served during the attack and after it; the slowest answer",
		Run: func(t *suite.T) {
			options := a.stage
			options.Network = network
			seen = perform(t, s.Start(t, options), a)
			t.Figure("%s of %d", milliseconds(seen.slowestAnswer), seen.answers)
		},
	}
	judge := func(name, proves string, wrong func() []string, figure func() string) suite.Check {
		return suite.Check{Name: name, Proves: proves, Run: func(t *suite.T) {
			if seen == nil {
				t.Fatalf("the attack did not come to its end")
			}
			if found := wrong(); len(found) > 0 {
				t.Fatalf("%d times, first:\n%s", len(found), strings.Join(found[:min(len(found), 5)], "\n"))
			}
			t.Figure("%s", figure())
		}}
	}
	recorded := []suite.Check{
		judge("reached", "nothing of the attack came to the endpoint; of the frames that did come there",
			func() []string { return seen.reached },
			func() string { return seen.frames(endpointDevice) }),
		judge("answered", "nobody was answered but the guest, and the guest by nobody else; of the frames to the guest",
			func() []string { return seen.answered },
			func() string { return seen.frames(guestTap) }),
	}
	if a.flood {
		recorded = nil // a check of what nobody has recorded would pass
	}
	return served, append(recorded,
		judge("leaked", "nothing of ours was on the uplink; of the frames that were there",
			func() []string { return seen.leaked },
			func() string { return seen.frames(uplink) }),
		judge("probe", "each of the kubelet's probes passed within its limit; the slowest",
			func() []string { return seen.failedProbes },
			func() string { return fmt.Sprintf("%s of %d", milliseconds(seen.slowestProbe), seen.probes) }),
	)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
