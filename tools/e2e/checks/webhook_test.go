package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testRights is about what the webhook may do in the API.
func (in *installation) testRights(t *testing.T) {
	in.check(t, "rights/rules", "the webhook may do nothing in the API (kind: get and patch its own configuration)", in.checkRules)
	in.check(t, "rights/token", "it has no token for the API (kind: one)", in.checkToken)
}

// checkRules compares with a ServiceAccount that nobody gave anything.
func (in *installation) checkRules(t *testing.T) {
	ctx := t.Context()
	for _, where := range []string{tenant, namespace, "kube-system"} {
		webhooks, err := in.rulesOf(ctx, webhook, where)
		check(t, err)
		anybodys, err := in.rulesOf(ctx, "default", where)
		check(t, err)
		var own []right
		for _, rule := range webhooks.ResourceRules {
			if !contains(anybodys.ResourceRules, rule) {
				own = append(own, rule)
			}
		}
		if !reflect.DeepEqual(own, in.rights) {
			t.Errorf("in the namespace %s the rights are %+v, want %+v", where, own, in.rights)
		}
		for _, rule := range webhooks.NonResourceRules {
			if !contains(anybodys.NonResourceRules, rule) {
				t.Errorf("a right that is not about a resource: %+v", rule)
			}
		}
	}
}

// rulesOf asks the API server what a ServiceAccount of the product's namespace may do in a namespace.
func (in *installation) rulesOf(ctx context.Context, account, where string) (authorizationv1.SubjectRulesReviewStatus, error) {
	request := in.api.Request(http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews").
		SetHeader("Impersonate-User", "system:serviceaccount:"+namespace+":"+account).
		SetHeader("Impersonate-Group", "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	review, err := kube.Do[authorizationv1.SelfSubjectRulesReview](ctx, request, authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: where},
	})
	if err != nil {
		return authorizationv1.SubjectRulesReviewStatus{}, err
	}
	return review.Status, nil
}

func contains[T any](all []T, one T) bool {
	for _, each := range all {
		if reflect.DeepEqual(each, one) {
			return true
		}
	}
	return false
}

// checkToken looks at the pods as they are stored: the API server's own admission adds the token's volume.
func (in *installation) checkToken(t *testing.T) {
	pods, err := in.webhookPods(t.Context())
	check(t, err)
	for _, pod := range pods {
		tokens := 0
		for _, volume := range pod.Spec.Volumes {
			if volume.Projected == nil {
				continue
			}
			for _, source := range volume.Projected.Sources {
				if source.ServiceAccountToken != nil {
					tokens++
				}
			}
		}
		want := 0
		if in.rights != nil {
			want = 1
		}
		if tokens != want {
			t.Errorf("pod %s has %d tokens, want %d", pod.Name, tokens, want)
		}
		for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
			if mountsAPI(container) != (want > 0) {
				t.Errorf("container %s: the folder of the API's token is mounted: %t", container.Name, want == 0)
			}
		}
	}
}

func mountsAPI(container corev1.Container) bool {
	for _, mount := range container.VolumeMounts {
		if strings.HasPrefix(mount.MountPath, "/var/run/secrets/kubernetes.io") {
			return true
		}
	}
	return false
}

// testAvailability is about what an administrator and the issuer of the certificate do while VMs start.
func (in *installation) testAvailability(t *testing.T) {
	in.check(t, "availability/restart", "the webhook is restarted without a failed admission", in.restarts)
	if in.renew != nil {
		in.check(t, "availability/renewal", "its certificate is renewed without a restart or a failed admission", in.renews)
	}
}

func (in *installation) restarts(t *testing.T) {
	old, err := in.webhookPods(t.Context())
	check(t, err)
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

func (in *installation) renews(t *testing.T) {
	pods, err := in.webhookPods(t.Context())
	check(t, err)
	before, err := in.servedCertificates(t.Context(), pods)
	check(t, err)
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
	check(t, err)
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

const (
	// streamPause is between two admissions of a stream: many for every step of a roll-out.
	streamPause = 20 * time.Millisecond
	// streamRest is how long a stream goes on after all is done: somebody may still act on it.
	streamRest = time.Second
)

// duringAdmissions does something while pods and VMs are admitted, steadily and in turn. Each of them must be.
func (in *installation) duringAdmissions(t *testing.T, do func(context.Context) error) {
	pod := launcherPod(t, in.site, "masquerade")
	vm := newVM("streamed", "masquerade", map[string]string{enabledAnnotation: "true"})
	admissions := []func(context.Context) error{
		func(ctx context.Context) error {
			stored, err := in.admit(ctx, pod)
			if err == nil && len(sidecars(stored)) != 2 {
				err = errors.New("a pod is stored without its sidecars")
			}
			return err
		},
		func(ctx context.Context) error {
			stored, err := kube.DryRun(ctx, in.api, virtualMachinesPath, vm)
			if err == nil && stored.Spec.Template.Metadata.Annotations[enabledAnnotation] != "true" {
				err = errors.New("a VM is stored without the annotation in its template")
			}
			return err
		},
	}

	end := make(chan struct{})
	var failures []string
	var slowest time.Duration
	admitted := 0
	begin := time.Now()
	var stream sync.WaitGroup
	stream.Go(func() {
		ticker := time.NewTicker(streamPause)
		defer ticker.Stop()
		for i := 0; ; i++ {
			asked := time.Now()
			if err := admissions[i%len(admissions)](t.Context()); err != nil {
				failures = append(failures, fmt.Sprintf("%5.2f s: %v", asked.Sub(begin).Seconds(), err))
			} else {
				admitted++
			}
			slowest = max(slowest, time.Since(asked))
			select {
			case <-ticker.C:
			case <-end:
				return
			}
		}
	})
	err := do(t.Context())
	if err == nil {
		time.Sleep(streamRest)
	}
	close(end)
	stream.Wait()

	check(t, err)
	t.Logf("%d admissions in %.1f s, the slowest took %d ms", admitted, time.Since(begin).Seconds(), slowest.Milliseconds())
	if len(failures) > 0 {
		t.Errorf("%d failed:\n%s", len(failures), strings.Join(failures[:min(len(failures), 5)], "\n"))
	}
}

// testCABundle is about what others do to the configuration that the webhook keeps its CA in.
func (in *installation) testCABundle(t *testing.T) {
	if in.rights == nil {
		return // it keeps none
	}
	in.check(t, "ca/replaced", "its configuration is replaced without the CA, and it admits again within seconds", in.replacesConfiguration)
	in.check(t, "ca/deleted", "its configuration is deleted: it is not ready; applied again, it admits within seconds", in.deletesConfiguration)
}

func (in *installation) replacesConfiguration(t *testing.T) {
	ctx := t.Context()
	config, err := kube.Get[admissionregistrationv1.MutatingWebhookConfiguration](ctx, in.api, configurations+"/"+webhook)
	check(t, err)
	config.ResourceVersion = ""
	config.APIVersion, config.Kind = "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"
	for i := range config.Webhooks {
		config.Webhooks[i].ClientConfig.CABundle = nil
	}
	content, err := json.Marshal(config)
	check(t, err)
	_, err = in.kubectlWith(ctx, string(content), "replace", "-f", "-")
	check(t, err)
	in.admitsAgain(t)
}

func (in *installation) deletesConfiguration(t *testing.T) {
	ctx := t.Context()
	_, err := in.kubectl(ctx, "delete", "mutatingwebhookconfiguration", webhook)
	check(t, err)
	_, ready := kube.Await(ctx, in.api, deployments, webhook, patience, func(d *appsv1.Deployment) string {
		if d.Status.AvailableReplicas == 0 {
			return ""
		}
		return fmt.Sprintf("%d replicas are available", d.Status.AvailableReplicas)
	})
	// First of all: the other checks need it.
	_, err = in.kubectl(ctx, "apply", "-k", in.path())
	check(t, err)
	check(t, ready)
	in.admitsAgain(t)
	check(t, in.awaitAdmission(ctx))
}

// admitsAgain waits until a pod that asks is injected.
func (in *installation) admitsAgain(t *testing.T) {
	begin := time.Now()
	check(t, in.awaitInjection(t.Context()))
	t.Logf("admitting after %.1f s", time.Since(begin).Seconds())
}
