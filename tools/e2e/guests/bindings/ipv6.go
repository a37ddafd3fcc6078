package bindings

import (
	"fmt"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// urlOfIPv6 is where a guest asks that has no IPv4, by the NIC of its choice (RFC 6874).
func (sc *scene) urlOfIPv6() string {
	return fmt.Sprintf("http://[%s%%25%s]", podnet.MetadataIPv6Addr, sc.nic)
}

// awaitIPv6 returns when the guest's kernel has found that nobody else has its NIC's addresses. No event tells of it in
// the guest's shell.
func (sc *scene) awaitIPv6(vm *stage.VM) {
	addresses := "ip -6 addr show dev " + sc.nic
	vm.Shell("for i in $(seq 200); do " + addresses + " | grep -q inet6 && ! " + addresses + " | grep -q tentative && exit 0; " +
		"usleep 50000; done; exit 1")
}

func (sc *scene) servedByIPv6(t *suite.T, vm *stage.VM) {
	sc.awaitIPv6(vm)
	got := vm.GetURL(sc.urlOfIPv6() + "/v1/token")
	requireToken(t, got, sc.token)
	t.Figure("%s", milliseconds(got.Took))
}
