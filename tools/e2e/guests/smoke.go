package guests

import (
	"encoding/json"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// smokeChecks prove that the stage itself stands.
func smokeChecks(s *stage.Stage) []suite.Check {
	return []suite.Check{
		{Name: "token", Proves: "a guest that has just booted gets its token with busybox wget", Run: func(t *suite.T) {
			vm := s.New(t, stage.Options{})
			vm.StartSidecars()
			vm.Wire()
			vm.Boot()
			vm.Configure("eth0")
			token := vm.RotateToken()
			t.Logf("%s", vm.Shell("cat /proc/uptime; ip route"))
			var answer struct{ Token string }
			t.Check(json.Unmarshal([]byte(vm.Shell("wget -q -O - "+stage.MetadataURL+"/v1/token")), &answer))
			if answer.Token != token {
				t.Errorf("it got another token than the one of the volume")
			}
		}},
	}
}
