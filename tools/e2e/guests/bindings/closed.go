package bindings

import (
	"bytes"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// closedPatience is how long the guest waits for an answer that must not come.
const closedPatience = time.Second

// lacksNetfilter is what imds-init says where it can keep nobody from the endpoint.
const lacksNetfilter = "the node's kernel lacks nf_tables"

// closed is the only right way to be on a kernel that cannot keep the neighbour from the endpoint.
func (sc *scene) closed(t *suite.T, vm *stage.VM) {
	got, err := vm.Guest.Hand.Get(t.Context(), hand.Get{URL: stage.MetadataURL + "/healthz", Limit: closedPatience})
	t.Check(err)
	if got.Failure == "" {
		t.Errorf("the guest was answered with status %d: %s", got.Status, got.Body)
	}
	t.Figure("%s", got.Failure)
	if log := vm.Init.Log(); strings.Count(log, lacksNetfilter) != 1 || strings.Count(log, "level=ERROR") != 1 {
		t.Errorf("imds-init has not said once that %s, and nothing else:\n%s", lacksNetfilter, log)
	}
	if _, err := vm.Net.Pod.MAC("veth-imds"); err == nil {
		t.Errorf("veth-imds is there, though nobody could be kept from it")
	}
}

// isGuestsOwn says whether a frame about the metadata address comes from nobody but the guest, which without the
// project looks for it on its network as any guest does.
func isGuestsOwn(f podnet.Frame) bool {
	return !bytes.Contains(f.Data[:12], podnet.EndpointMAC) && !bytes.Contains(f.Data[:12], podnet.PortMAC)
}
