package guests

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/checks"
	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/dhcp"
	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	// outage is how long the API server is away.
	outage = 20 * time.Second
	// restartLimit is how long the guest may go without an answer when the kubelet restarts imds-server for the first
	// time, which it does about once a second.
	restartLimit = 5 * time.Second
)

// kubeletSeen is what was seen.
type kubeletSeen struct {
	identity, token          error
	initKilled, serverKilled guestagent.Asked
	withoutAPI               guestagent.Asked
	tokenAfter               error // of the token, once the API server was back
	containers               []string
	ends                     []time.Time // of the containers
}

// A real guest is in a pod that a real kubelet runs, with the sidecars that the webhook has given it.
func TestKubelet(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(string(way), func(t *testing.T) {
			t.Parallel()
			var seen *kubeletSeen
			if !results.Skipping() {
				useProcessors(t, 2)
				seen = underKubelet(t, way)
			}
			for _, c := range []struct {
				name, proves string
				judge        func(*testing.T, *kubeletSeen)
			}{
				{"identity", "the guest learns who it is", func(t *testing.T, v *kubeletSeen) { check(t, v.identity) }},
				{"token", "its token is accepted by a TokenReview, bound to its pod", func(t *testing.T, v *kubeletSeen) { check(t, v.token) }},
				{"init-killed", "imds-init, killed and restarted: requests lost, the longest gap", servedWithoutInit},
				{"server-killed", "imds-server, killed and restarted: requests lost, the longest gap", servedAfterRestart},
				{"api-server", "the API server is away for 20 s: requests lost, the longest gap", servedWithoutAPI},
				{"deleted", "the pod is deleted: the sidecars end after compute, the last first", endsInOrder},
			} {
				results.Check(t, groupIn(way, "kubelet")+"/guest", c.name, c.proves, func(t *testing.T) { c.judge(t, seen) })
			}
		})
	}
}

func underKubelet(t *testing.T, way vmtest.WiredBy) *kubeletSeen {
	c, err := cluster.Up(t.Context(), os.Stderr)
	check(t, err)
	t.Cleanup(func() { check(t, c.Down(t.Failed())) })
	vm := checks.StartVM(t, c, way == vmtest.ByNodeAgent, os.Stderr)
	guest := bootIn(t, vm)
	vm.Ask = func(ctx context.Context, path string) ([]byte, error) {
		got, err := guest.Agent.Get(ctx, guestagent.Get{URL: vmtest.MetadataURL + path})
		if err == nil && got.Status != http.StatusOK {
			err = fmt.Errorf("GET %s: %d %s %s", path, got.Status, got.Detail, got.Body)
		}
		return []byte(got.Body), err
	}
	ctx := t.Context()
	during := func(do func()) guestagent.Asked {
		task, err := guest.Agent.Ask(ctx, guestagent.Ask{Get: guestagent.Get{URL: vmtest.MetadataURL + "/v1/token"}, Rate: 10})
		check(t, err)
		awaitSteady(t, vm)
		do()
		awaitSteady(t, vm)
		asked, err := task.Stop(ctx)
		check(t, err)
		return asked
	}
	nothing := func() error { return nil }
	v := new(kubeletSeen)
	v.identity, v.token = vm.CheckIdentity(ctx), vm.CheckToken(ctx)
	v.initKilled = during(func() { check(t, vm.KillInit(ctx, nothing)) })
	v.serverKilled = during(func() { check(t, vm.Kill(ctx, "imds-server", nothing)) })
	v.withoutAPI = during(func() {
		check(t, c.WithoutAPIServer(ctx, func() error {
			select {
			case <-time.After(outage):
			case <-ctx.Done():
			}
			return nil
		}))
	})
	v.tokenAfter = vm.CheckToken(ctx)
	v.containers = vm.Containers()
	v.ends, err = vm.Delete(ctx)
	check(t, err)
	return v
}

// awaitSteady returns when the guest has had some answers one after the other: after a restart nothing tells when
// that is.
func awaitSteady(t *testing.T, vm *checks.VM) {
	const enough = 10
	begin := time.Now()
	for answers := 0; answers < enough; {
		_, err := vm.Ask(t.Context(), "/healthz")
		if err == nil {
			answers++
			continue
		}
		answers = 0
		if time.Since(begin) > vmtest.Patience {
			t.Fatalf("no answer: %v", err)
		}
	}
}

// bootIn starts a guest in the VM's pod, with what KubeVirt's DHCP server gives it.
func bootIn(t *testing.T, vm *checks.VM) *qemu.Guest {
	pid, err := vm.Process(t.Context(), "compute")
	check(t, err)
	pod, err := podnet.NamespaceOf(pid)
	check(t, err)
	t.Cleanup(func() { check(t, pod.Close()) })
	server, err := dhcp.Serve(pod, "k6t-eth0", podnet.MasqueradeGateway, dhcp.Masquerade(passtGuestMAC, 1500))
	check(t, err)
	t.Cleanup(func() { check(t, server.Close()) })
	guest, err := qemu.Boot(t.Context(), qemu.Options{
		Image: env.Image(), Namespace: pod, NICs: []qemu.NIC{{MAC: passtGuestMAC, MTU: 1500, Tap: "tap0"}},
	})
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the guest:\n%s", guest.Console())
		}
		check(t, guest.Close())
	})
	_, err = guest.Agent.Shell(t.Context(), "ip link set eth0 up && udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /etc/udhcpc.sh")
	check(t, err)
	return guest
}

func figureOf(t *testing.T, asked guestagent.Asked) {
	results.Figure(t, "%d of %d, %d ms", asked.Sent-asked.Answered, asked.Sent, asked.Gap.Milliseconds())
}

func servedWithoutInit(t *testing.T, v *kubeletSeen) {
	figureOf(t, v.initKilled)
	if v.initKilled.Answered != v.initKilled.Sent {
		t.Errorf("%v: %+v", v.initKilled.Failures, v.initKilled.Lost)
	}
}

func servedAfterRestart(t *testing.T, v *kubeletSeen) {
	figureOf(t, v.serverKilled)
	for failure := range v.serverKilled.Failures {
		if failure != guestagent.Refused && failure != guestagent.Reset {
			t.Errorf("%v: %+v", v.serverKilled.Failures, v.serverKilled.Lost)
		}
	}
	if v.serverKilled.Gap > restartLimit {
		t.Errorf("more than %s", restartLimit)
	}
}

func servedWithoutAPI(t *testing.T, v *kubeletSeen) {
	figureOf(t, v.withoutAPI)
	if v.withoutAPI.Answered != v.withoutAPI.Sent || v.withoutAPI.Sent < 10*int(outage.Seconds())/2 {
		t.Errorf("%v: %+v", v.withoutAPI.Failures, v.withoutAPI.Lost)
	}
	if v.tokenAfter != nil {
		t.Errorf("afterwards: %v", v.tokenAfter)
	}
}

// endsInOrder: the VM's own container ends first, and then the sidecars, the last first.
func endsInOrder(t *testing.T, v *kubeletSeen) {
	last := len(v.ends) - 1
	for i := last; i >= 0; i-- {
		after := v.ends[i].Sub(v.ends[last])
		t.Logf("%s ended after %d ms", v.containers[i], after.Milliseconds())
		if i < last && v.ends[i].Before(v.ends[i+1]) {
			t.Errorf("%s ended before %s", v.containers[i], v.containers[i+1])
		}
	}
	results.Figure(t, "in order, %d ms", v.ends[1].Sub(v.ends[last]).Milliseconds())
}
