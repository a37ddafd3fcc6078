// Package kubelet has checks of a real guest in a pod that a real kubelet runs, with the sidecars that the webhook
// has given it: in a Kubernetes of package cluster, wired as KubeVirt does it.
package kubelet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/checks"
	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/dhcp"
	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	// outage is how long the API server is away.
	outage = 20 * time.Second
	// restartLimit is how long the guest may go without an answer when the kubelet restarts imds-server for the first
	// time, which it does about once a second.
	restartLimit = 5 * time.Second
)

// guestMAC is that of the guest's NIC.
var guestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x57}

// seen is what was seen.
type seen struct {
	identity, token          error
	initKilled, serverKilled hand.Asked
	withoutAPI               hand.Asked
	tokenAfter               error       // of the token, once the API server was back
	ends                     []time.Time // of checks.Containers
}

// Checks returns the checks.
func Checks(s *stage.Stage) []suite.Check {
	check := stage.Aspects(func(t *suite.T) *seen { return run(t, s) })
	return []suite.Check{
		check("identity", "the guest learns who it is", func(t *suite.T, v *seen) { t.Check(v.identity) }),
		check("token", "its token is accepted by a TokenReview, bound to its pod", func(t *suite.T, v *seen) { t.Check(v.token) }),
		check("init-killed", "imds-init, killed and restarted: requests lost, the longest gap", servedWithoutInit),
		check("server-killed", "imds-server, killed and restarted: requests lost, the longest gap", servedAfterRestart),
		check("api-server", "the API server is away for 20 s: requests lost, the longest gap", servedWithoutAPI),
		check("deleted", "the pod is deleted: the sidecars end after compute, the last first", endsInOrder),
	}
}

func run(t *suite.T, s *stage.Stage) *seen {
	c := startCluster(t)
	vm := checks.StartVM(t, c, os.Stderr)
	guest := boot(t, s, vm)
	vm.Ask = func(ctx context.Context, path string) ([]byte, error) {
		got, err := guest.Hand.Get(ctx, hand.Get{URL: stage.MetadataURL + path})
		if err == nil && got.Status != http.StatusOK {
			err = fmt.Errorf("GET %s: %d %s %s", path, got.Status, got.Detail, got.Body)
		}
		return []byte(got.Body), err
	}
	ctx := t.Context()
	during := func(do func()) hand.Asked {
		task, err := guest.Hand.Ask(ctx, hand.Ask{Get: hand.Get{URL: stage.MetadataURL + "/v1/token"}, Rate: 10})
		t.Check(err)
		awaitSteady(t, vm)
		do()
		awaitSteady(t, vm)
		asked, err := task.Stop(ctx)
		t.Check(err)
		return asked
	}
	nothing := func() error { return nil }
	v := new(seen)
	v.identity, v.token = vm.CheckIdentity(ctx), vm.CheckToken(ctx)
	v.initKilled = during(func() { t.Check(vm.Kill(ctx, "imds-init", nothing)) })
	v.serverKilled = during(func() { t.Check(vm.Kill(ctx, "imds-server", nothing)) })
	v.withoutAPI = during(func() {
		t.Check(c.WithoutAPIServer(ctx, func() error {
			select {
			case <-time.After(outage):
			case <-ctx.Done():
			}
			return nil
		}))
	})
	v.tokenAfter = vm.CheckToken(ctx)
	var err error
	v.ends, err = vm.Delete(ctx)
	t.Check(err)
	return v
}

// awaitSteady returns when the guest has had some answers one after the other: after a restart nothing tells when
// that is.
func awaitSteady(t *suite.T, vm *checks.VM) {
	const enough = 10
	begin := time.Now()
	for answers := 0; answers < enough; {
		_, err := vm.Ask(t.Context(), "/healthz")
		if err == nil {
			answers++
			continue
		}
		answers = 0
		if time.Since(begin) > stage.Patience {
			t.Fatalf("no answer: %v", err)
		}
	}
}

// startCluster starts one for this check alone.
func startCluster(t *suite.T) *cluster.Cluster {
	t.Check(cluster.Check())
	programs, err := cluster.Build(t.Context(), os.Stderr)
	t.Check(err)
	c, err := cluster.Start(t.Context(), cluster.Options{Programs: programs, Progress: io.Discard})
	t.Check(err)
	t.Cleanup(func() {
		t.Check(c.Stop())
		if t.Failed() {
			t.Logf("the logs of the cluster are kept in %s", c.Folder())
			return
		}
		t.Check(os.RemoveAll(c.Folder()))
	})
	return c
}

// boot starts a guest in the VM's pod, with what KubeVirt's DHCP server gives it.
func boot(t *suite.T, s *stage.Stage, vm *checks.VM) *qemu.Guest {
	pid, err := vm.Process(t.Context(), "compute")
	t.Check(err)
	pod, err := podnet.NamespaceOf(pid)
	t.Check(err)
	t.Cleanup(func() { t.Check(pod.Close()) })
	server, err := dhcp.Serve(pod, "k6t-eth0", podnet.MasqueradeGateway, dhcp.Masquerade(guestMAC, 1500))
	t.Check(err)
	t.Cleanup(func() { t.Check(server.Close()) })
	guest, err := qemu.Boot(t.Context(), qemu.Options{
		Image: s.Image(), Namespace: pod, NICs: []qemu.NIC{{MAC: guestMAC, MTU: 1500, Tap: "tap0"}},
	})
	t.Check(err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the guest:\n%s", guest.Console())
		}
		t.Check(guest.Close())
	})
	_, err = guest.Hand.Shell(t.Context(), "ip link set eth0 up && udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /etc/udhcpc.sh")
	t.Check(err)
	return guest
}

func figure(t *suite.T, asked hand.Asked) {
	t.Figure("%d of %d, %d ms", asked.Sent-asked.Answered, asked.Sent, asked.Gap.Milliseconds())
}

func servedWithoutInit(t *suite.T, v *seen) {
	figure(t, v.initKilled)
	if v.initKilled.Answered != v.initKilled.Sent {
		t.Errorf("%v: %+v", v.initKilled.Failures, v.initKilled.Lost)
	}
}

func servedAfterRestart(t *suite.T, v *seen) {
	figure(t, v.serverKilled)
	for failure := range v.serverKilled.Failures {
		if failure != hand.Refused && failure != hand.Reset {
			t.Errorf("%v: %+v", v.serverKilled.Failures, v.serverKilled.Lost)
		}
	}
	if v.serverKilled.Gap > restartLimit {
		t.Errorf("more than %s", restartLimit)
	}
}

func servedWithoutAPI(t *suite.T, v *seen) {
	figure(t, v.withoutAPI)
	if v.withoutAPI.Answered != v.withoutAPI.Sent || v.withoutAPI.Sent < 10*int(outage.Seconds())/2 {
		t.Errorf("%v: %+v", v.withoutAPI.Failures, v.withoutAPI.Lost)
	}
	if v.tokenAfter != nil {
		t.Errorf("afterwards: %v", v.tokenAfter)
	}
}

func endsInOrder(t *suite.T, v *seen) {
	for i, end := range v.ends {
		after := end.Sub(v.ends[0])
		t.Logf("%s ended after %d ms", checks.Containers[i], after.Milliseconds())
		if i > 0 && end.Before(v.ends[i-1]) {
			t.Errorf("%s ended before %s", checks.Containers[i], checks.Containers[i-1])
		}
	}
	t.Figure("in order, %d ms", v.ends[2].Sub(v.ends[0]).Milliseconds())
}
