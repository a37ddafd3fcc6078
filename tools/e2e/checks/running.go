package checks

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// runningPodChecks are about one VM's pod that a kubelet runs, and the guest in it.
func runningPodChecks(in *installation) []suite.Check {
	if !in.once {
		return nil
	}
	onVM := func(name, proves string, check func(*suite.T, *VM)) suite.Check {
		return suite.Check{Name: "running/" + name, Proves: proves, Run: func(t *suite.T) {
			v, err := in.vm()
			t.Check(err)
			t.Cleanup(func() {
				if t.Failed() {
					v.Explain(t)
				}
			})
			check(t, v)
		}}
	}
	return []suite.Check{
		onVM("order", "in a pod that runs, the sidecars start in order, before compute", startsInOrder),
		onVM("privileges", "imds-init has NET_ADMIN alone, imds-server nothing; seccomp, read-only roots", hasNoPrivilege),
		onVM("guaranteed", "the kubelet keeps the pod Guaranteed, with the sidecars' limits in force", isGuaranteed),
		onVM("inside", "the endpoint is there before the VM's network is", answersInside),
		onVM("guest", "a guest is served once its bridge and tap are there", servesGuest),
		onVM("identity", "the guest learns who it is", tellsIdentity),
		onVM("token", "its token is accepted by a TokenReview, as its ServiceAccount's, bound to its pod", givesToken),
		onVM("audience", "its token for another audience is accepted for that one alone", givesAudienceToken),
		onVM("flood", "under a flood from the guest the liveness probe succeeds, and memory stays in its limit", survivesFlood),
		onVM("killed-server", "imds-server, killed, is restarted and answers", survivesKill(serverContainer)),
		onVM("killed-init", "imds-init, killed, is restarted; the guest is served all the while", survivesKill(initContainer)),
		onVM("end", "when compute ends, the pod completes", completes),
	}
}

// boot wires the pod and starts the stand-in for a guest, unless that is done.
func (v *VM) boot() error {
	if v.Ask != nil {
		return nil
	}
	if err := v.network.Wire(); err != nil {
		return err
	}
	if err := v.network.StartGuest(); err != nil {
		return err
	}
	v.Ask = v.fromGuest().ask
	return nil
}

// fromPod asks from the pod itself, as the liveness probe does, and fromGuest from the guest.
func (v *VM) fromPod() dialer   { return v.network.Pod.Dial }
func (v *VM) fromGuest() dialer { return v.network.Guest.Dial }

func answersInside(t *suite.T, v *VM) {
	if v.Ask != nil {
		t.Fatalf("the guest is there already")
	}
	_, err := v.fromPod().awaitAnswer(t.Context())
	t.Check(err)
}

func servesGuest(t *suite.T, v *VM) {
	begin := time.Now()
	t.Check(v.boot())
	booted := time.Since(begin)
	took, err := v.fromGuest().awaitAnswer(t.Context())
	t.Check(err)
	t.Logf("first answer %d ms after bridge, NAT and tap (which took %d ms)", took.Milliseconds(), booted.Milliseconds())
}

// survivesKill kills a sidecar as the kernel does when memory is short.
func survivesKill(name string) func(*suite.T, *VM) {
	return func(t *suite.T, v *VM) {
		t.Check(v.boot())
		begin := time.Now()
		t.Check(v.Kill(t.Context(), name, func() error {
			if name == serverContainer {
				return nil
			}
			_, err := v.Ask(t.Context(), "/healthz")
			return err
		}))
		_, err := v.fromGuest().awaitAnswer(t.Context())
		t.Check(err)
		t.Logf("restarted and answering after %.1f s", time.Since(begin).Seconds())
	}
}

// Kill kills a container, does something at once, and returns when the kubelet has restarted it.
func (v *VM) Kill(ctx context.Context, name string, atOnce func() error) error {
	before, err := v.status(ctx, name)
	if err != nil {
		return err
	}
	pid, err := v.process(ctx, name)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := atOnce(); err != nil {
		return err
	}
	_, err = kube.Await(ctx, v.site.api, podsPath, v.pod.Name, patience, func(pod *corev1.Pod) string {
		status, err := statusOf(pod, name)
		switch {
		case err != nil:
			return err.Error()
		case status.RestartCount == before.RestartCount || status.State.Running == nil:
			return fmt.Sprintf("%s is not restarted: %+v", name, status.State)
		}
		return runningLacks(pod)
	})
	return err
}

// completes ends compute as virt-launcher ends when its guest has powered off.
func completes(t *suite.T, v *VM) {
	pid, err := v.process(t.Context(), "compute")
	t.Check(err)
	begin := time.Now()
	t.Check(syscall.Kill(pid, syscall.SIGTERM))
	_, err = kube.Await(t.Context(), v.site.api, podsPath, v.pod.Name, patience, func(pod *corev1.Pod) string {
		if pod.Status.Phase == corev1.PodSucceeded {
			return ""
		}
		return "its phase is " + string(pod.Status.Phase)
	})
	t.Check(err)
	t.Logf("after %.1f s", time.Since(begin).Seconds())
}

// Explain shows the state of the pod and what its sidecars have logged.
func (v *VM) Explain(t *suite.T) {
	ctx := t.Context()
	for _, name := range []string{initContainer, serverContainer} {
		status, err := v.status(ctx, name)
		t.Logf("%s: %d restarts, %+v (%v)", name, status.RestartCount, status.State, err)
		log, err := v.log(ctx, name)
		t.Logf("%s (%v)", strings.TrimSpace(log), err)
	}
}
