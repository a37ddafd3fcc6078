package checks

import (
	"context"
	"net/http"
	"reflect"
	"strings"
	"testing"

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
