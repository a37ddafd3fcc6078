package main

import (
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet/seccomp"
)

// What its profile does not allow ends the agent with a trace.
func TestAgentUnderItsSeccompProfile(t *testing.T) {
	for _, tests := range []string{
		"^(TestAgentServesEachBinding|TestAgentIsKilledAndStartedAgain|TestServerIsStartedAgain|TestPodIsDeleted|TestAgentFindsPods|" +
			"TestEventsAreLost|TestWhatAPodHandsOverIsChecked|TestPathsAreNotFollowed|TestSocketsThatLinger|TestPodThatHasEndedAndHoldsOn|TestMetricsOfTheAgent|TestMetricsAreToldAgain)$",
		"^TestAgentDetachesOtherPodsVolumes$/^own=true$",
	} {
		seccomp.Run(t, ".", "../kustomize/components/node-agent-seccomp/imds-agent.json", tests)
	}
}
