package bindings

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// served is the first question after the boot, and then one with the tool that any guest has.
func (sc *scene) served(t *suite.T, vm *stage.VM) {
	got := sc.get(vm, "/v1/token")
	requireToken(t, got, sc.token)
	t.Figure("%s", milliseconds(got.Took))
	// busybox wget has a zone as people write it, not as URLs do.
	fetched := vm.Shell("wget -q -O - " + strings.ReplaceAll(sc.url(), "%25", "%") + "/v1/token")
	if token := tokenIn(t, fetched); token != sc.token {
		t.Errorf("wget got another token than the volume's: %s", fetched)
	}
}

func (sc *scene) identity(t *suite.T, vm *stage.VM) {
	got := sc.get(vm, "/v1/identity")
	requireAnswer(t, got)
	var identity struct{ Namespace, ServiceAccountName, VMName, PodName string }
	t.Check(json.Unmarshal([]byte(got.Body), &identity))
	if identity.VMName != vmName || identity.PodName != "virt-launcher-"+vmName || identity.Namespace == "" || identity.ServiceAccountName == "" {
		t.Errorf("it is told %s", got.Body)
	}
}

// onLinkServed gives the guest a route that images with zeroconf have, and takes it away again.
func (sc *scene) onLinkServed(t *suite.T, vm *stage.VM) {
	route := sc.onLink + " dev " + sc.nic
	vm.Shell("ip route add " + route)
	defer vm.Shell("ip route del " + route)
	sc.forgetNeighbours(vm)
	got := sc.get(vm, "/v1/token")
	requireToken(t, got, sc.token)
	t.Figure("%s", milliseconds(got.Took))
	sc.knowsEndpoint(t, vm)
}

// leastPackets is how many packets a large answer takes at the least, and leastBytes its least size.
const (
	leastPackets = 5
	leastBytes   = 8 << 10
)

func (sc *scene) large(t *suite.T, vm *stage.VM) {
	vm.PadTokens(max(leastBytes, leastPackets*sc.network.MTU))
	sc.token = vm.RotateToken()
	got := sc.get(vm, "/v1/token")
	requireToken(t, got, sc.token)
	t.Figure("%d B in %s", len(got.Body), milliseconds(got.Took))
	vm.PadTokens(0)
	sc.token = vm.RotateToken()
}

// impostorQuestions are asked half by the guest's routes, half on-link.
const impostorQuestions = 10

// arpLocktime is how long Linux keeps to what it has learned by ARP, whatever is said meanwhile
// (net.ipv4.neigh.*.locktime), in seconds, and somewhat more.
const arpLocktime = "1.1"

// impostor has the neighbour claim the address many times a second: while the guest looks for it, and for longer
// than the guest keeps to what it knows.
func (sc *scene) impostor(t *suite.T, vm *stage.VM) {
	impostor, err := vm.Net.Impersonate(t.Context())
	t.Check(err)
	t.Cleanup(func() { impostor.Stop() }) // a second time, where all is well
	answers := 0
	ask := func() {
		for range impostorQuestions / 2 {
			sc.forgetNeighbours(vm)
			requireToken(t, sc.get(vm, "/v1/token"), sc.token)
			answers++
		}
	}
	ask()
	if !sc.withoutIPv4 {
		route := sc.onLink + " dev " + sc.nic
		vm.Shell("ip route add " + route)
		defer vm.Shell("ip route del " + route)
	}
	ask()
	vm.Shell("sleep " + arpLocktime)
	requireToken(t, sc.get(vm, "/v1/token"), sc.token)
	sc.knowsEndpoint(t, vm)
	t.Check(impostor.Stop())
	if n := impostor.Requests(); n != 0 {
		t.Errorf("%d of the guest's requests came to the impostor", n)
	}
	t.Figure("%d of %d", answers, impostorQuestions)
}

// knowsEndpoint fails the check if the guest takes anybody else for the metadata service. The guest of passt takes passt
// for everybody.
func (sc *scene) knowsEndpoint(t *suite.T, vm *stage.VM) {
	if sc.passt {
		return
	}
	address := podnet.MetadataAddr
	if sc.withoutIPv4 {
		address = podnet.MetadataIPv6Addr
	}
	known := vm.Shell("ip neigh show " + address.String())
	if !strings.Contains(known, podnet.EndpointMAC.String()) {
		t.Errorf("the guest has not learned the endpoint's MAC, %s, but: %s", podnet.EndpointMAC, known)
	}
}

func requireAnswer(t *suite.T, got hand.Got) {
	if got.Failure != "" || got.Status != 200 {
		t.Fatalf("no answer: status %d %s %s %s", got.Status, got.Failure, got.Detail, got.Body)
	}
}

func requireToken(t *suite.T, got hand.Got, want string) {
	requireAnswer(t, got)
	if tokenIn(t, got.Body) != want {
		t.Errorf("another token than the volume's, in %d bytes", len(got.Body))
	}
}

func tokenIn(t *suite.T, body string) string {
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%q is no answer: %v", body, err)
	}
	return answer.Token
}

func milliseconds(d time.Duration) string {
	return d.Round(100 * time.Microsecond).String()
}
