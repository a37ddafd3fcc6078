package checks

import (
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testRunningPod is about one VM's pod that a kubelet runs, and the guest in it.
func (in *installation) testRunningPod(t *testing.T) {
	if !in.once {
		return
	}
	onVM := func(name, proves string, run func(*testing.T, *VM)) {
		in.check(t, name, proves, func(t *testing.T) {
			v, err := in.vm()
			check(t, err)
			t.Cleanup(func() {
				if t.Failed() {
					v.Explain(t)
				}
			})
			run(t, v)
		})
	}
	onVM("running/order", "in a pod that runs, the sidecars start in order, before compute", startsInOrder)
	onVM("running/privileges", "imds-init has NET_ADMIN alone, imds-server nothing; seccomp, read-only roots", hasNoPrivilege)
	onVM("running/guaranteed", "the kubelet keeps the pod Guaranteed, with the sidecars' limits in force", isGuaranteed)
	onVM("running/inside", "the endpoint is there before the VM's network is", answersInside)
	onVM("running/guest", "a guest is served once its bridge and tap are there", servesGuest)
	onVM("running/identity", "the guest learns who it is", tellsIdentity)
	onVM("running/token", "its token is accepted by a TokenReview, as its ServiceAccount's, bound to its pod", givesToken)
	onVM("running/audience", "its token for another audience is accepted for that one alone", givesAudienceToken)
	onVM("running/flood", "under a flood from the guest the liveness probe succeeds, and memory stays in its limit", survivesFlood)
	onVM("running/killed-server", "imds-server, killed, is restarted and answers", survivesKill(serverContainer))
	onVM("running/killed-init", "imds-init, killed, is restarted; the guest is served all the while", survivesKill(initContainer))
	onVM("running/end", "when compute ends, the pod completes", completes)
}

func answersInside(t *testing.T, v *VM) {
	if v.Ask != nil {
		t.Fatalf("the guest is there already")
	}
	_, err := v.fromPod().awaitAnswer(t.Context())
	check(t, err)
}

func servesGuest(t *testing.T, v *VM) {
	begin := time.Now()
	check(t, v.boot())
	booted := time.Since(begin)
	took, err := v.fromGuest().awaitAnswer(t.Context())
	check(t, err)
	t.Logf("first answer %d ms after bridge, NAT and tap (which took %d ms)", took.Milliseconds(), booted.Milliseconds())
}

// survivesKill kills a sidecar as the kernel does when memory is short.
func survivesKill(name string) func(*testing.T, *VM) {
	return func(t *testing.T, v *VM) {
		check(t, v.boot())
		begin := time.Now()
		check(t, v.Kill(t.Context(), name, func() error {
			if name == serverContainer {
				return nil
			}
			_, err := v.Ask(t.Context(), "/healthz")
			return err
		}))
		_, err := v.fromGuest().awaitAnswer(t.Context())
		check(t, err)
		t.Logf("restarted and answering after %.1f s", time.Since(begin).Seconds())
	}
}

// completes ends compute as virt-launcher ends when its guest has powered off.
func completes(t *testing.T, v *VM) {
	pid, err := v.process(t.Context(), "compute")
	check(t, err)
	begin := time.Now()
	check(t, syscall.Kill(pid, syscall.SIGTERM))
	_, err = kube.Await(t.Context(), v.site.api, podsPath, v.pod.Name, patience, func(pod *corev1.Pod) string {
		if pod.Status.Phase == corev1.PodSucceeded {
			return ""
		}
		return "its phase is " + string(pod.Status.Phase)
	})
	check(t, err)
	t.Logf("after %.1f s", time.Since(begin).Seconds())
}
