package checks

import (
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// availabilityChecks are about what an administrator and the issuer of the certificate do while VMs start.
func availabilityChecks(in *installation) []suite.Check {
	checks := []suite.Check{
		{Name: "availability/restart", Proves: "the webhook is restarted without a failed admission", Run: in.restarts},
	}
	if in.renew != nil {
		checks = append(checks, suite.Check{
			Name: "availability/renewal", Proves: "its certificate is renewed without a restart or a failed admission", Run: in.renews})
	}
	return checks
}

func (in *installation) restarts(t *suite.T) {
	old, err := in.webhookPods(t.Context())
	t.Check(err)
	in.duringAdmissions(t, func(ctx context.Context) error {
		if _, err := in.kubectl(ctx, "rollout", "restart", "--namespace="+namespace, "deployment/"+webhook); err != nil {
			return err
		}
		if err := in.awaitRollout(ctx); err != nil {
			return err
		}
		return in.awaitGone(ctx, old)
	})
}

// awaitGone returns when the pods have ended.
func (in *installation) awaitGone(ctx context.Context, pods []corev1.Pod) error {
	for _, pod := range pods {
		if err := kube.AwaitGone(ctx, in.api, webhookPods, pod.Name, patience); err != nil {
			return err
		}
	}
	return nil
}

func (in *installation) renews(t *suite.T) {
	pods, err := in.webhookPods(t.Context())
	t.Check(err)
	before, err := in.servedCertificates(t.Context(), pods)
	t.Check(err)
	in.duringAdmissions(t, func(ctx context.Context) error {
		begin := time.Now()
		if err := in.renew(ctx, in); err != nil {
			return err
		}
		if err := in.awaitOtherCertificates(ctx, pods, before); err != nil {
			return err
		}
		t.Logf("all replicas serve it after %.1f s", time.Since(begin).Seconds())
		return nil
	})
	after, err := in.webhookPods(t.Context())
	t.Check(err)
	if !maps.Equal(restarts(after), restarts(pods)) {
		t.Errorf("the pods and their restarts were %v and are %v", restarts(pods), restarts(after))
	}
}

// restarts counts, by the pods' names, how many times their containers ended.
func restarts(pods []corev1.Pod) map[string]int32 {
	counts := map[string]int32{}
	for _, pod := range pods {
		counts[pod.Name] = 0
		for _, status := range pod.Status.ContainerStatuses {
			counts[pod.Name] += status.RestartCount
		}
	}
	return counts
}
