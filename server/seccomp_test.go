package main

import (
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet/seccomp"
)

// What its profile does not allow ends the program with a trace.
func TestServerUnderItsSeccompProfile(t *testing.T) {
	seccomp.Run(t, ".", "../kustomize/components/seccomp/imds-server.json",
		"^(TestSidecar.*|TestProbe.*|TestHopLimitOfBothFamilies|.*Node.*|.*Rotat.*|.*Drain.*|.*Token.*)$")
}
