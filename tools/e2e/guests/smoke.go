package guests

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// smokeChecks prove that the stage itself stands: a guest boots on it, and is what KubeVirt makes of it.
func smokeChecks(s *stage.Stage) []suite.Check {
	check := func(name, proves string, run func(*suite.T, *stage.Stage)) suite.Check {
		return suite.Check{Name: name, Proves: proves, Run: func(t *suite.T) { run(t, s) }}
	}
	return []suite.Check{
		check("token", "a guest that has just booted gets its token with busybox wget", getsToken),
		check("bridge", "in bridge binding it takes over the pod's address, MAC and routes", takesOverPod),
	}
}

func getsToken(t *suite.T, s *stage.Stage) {
	vm := s.New(t, stage.Options{})
	vm.StartSidecars()
	vm.Wire()
	begin := time.Now()
	vm.Boot()
	t.Figure("%.1f s", time.Since(begin).Seconds())
	vm.Configure("eth0")
	if route := vm.Shell("ip route show default"); !strings.Contains(route, "via 10.0.2.1 dev eth0") {
		t.Errorf("its default route is %q", route)
	}
	token := vm.RotateToken()
	var answer struct{ Token string }
	t.Check(json.Unmarshal([]byte(vm.Shell("wget -q -O - "+stage.MetadataURL+"/v1/token")), &answer))
	if answer.Token != token {
		t.Errorf("it got another token than the volume's")
	}
	t.Check(vm.Server.Probe(t.Context(), "-live"))
}

func takesOverPod(t *suite.T, s *stage.Stage) {
	vm := s.New(t, stage.Options{Network: podnet.Options{Binding: podnet.Bridge, MTU: 1400}})
	mac, err := vm.Net.Pod.MAC("eth0")
	t.Check(err)
	vm.StartSidecars()
	vm.Wire()
	vm.Boot()
	vm.Configure("eth0")
	seen := vm.Shell("ip addr show eth0; ip route")
	for _, want := range []string{mac.String(), "mtu 1400", podnet.PodAddr.String() + "/24", "default via " + podnet.NeighbourAddr.String()} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q in %s", want, seen)
		}
	}
	vm.Shell("ping -c 1 -W 2 " + podnet.NeighbourAddr.String())
	requireAnswer(t, vm.Get("/v1/identity"))
}

func requireAnswer(t *suite.T, got hand.Got) {
	if got.Status != 200 {
		t.Errorf("status %d, %s: %s%s", got.Status, got.Failure, got.Detail, got.Body)
	}
}
