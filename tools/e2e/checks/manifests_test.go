package checks

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testManifests is about what was applied.
func (in *installation) testManifests(t *testing.T) {
	in.check(t, "manifests/again", "applied again, it changes nothing", in.applyAgain)
	in.check(t, "manifests/restricted", "its namespace enforces Pod Security restricted, and its pods are there", in.restricted)
	in.check(t, "manifests/package", "the kpt package passes a server-side dry run", in.applyPackage)
}

// applyAgain also shows that applying does not take the caBundle away.
func (in *installation) applyAgain(t *testing.T) {
	ctx := t.Context()
	_, err := in.kubectl(ctx, "apply", "-k", in.path(), "--dry-run=server")
	check(t, err)
	// Not the output of apply: for a PodDisruptionBudget it always says "configured". A difference is an error.
	_, err = in.kubectl(ctx, "diff", "-k", in.path())
	check(t, err)
	_, err = in.kubectl(ctx, "apply", "-k", in.path())
	check(t, err)
	_, err = in.admit(ctx, launcherPod(t, in.site, "masquerade"))
	check(t, err)
}

func (in *installation) restricted(t *testing.T) {
	ctx := t.Context()
	found, err := kube.Get[corev1.Namespace](ctx, in.api, "/api/v1/namespaces/"+namespace)
	check(t, err)
	for _, mode := range []string{"enforce", "audit", "warn"} {
		if got := found.Labels["pod-security.kubernetes.io/"+mode]; got != "restricted" {
			t.Errorf("the namespace's label for %s says %q, want restricted", mode, got)
		}
	}
	// That the labels are in force.
	unfit := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "unfit"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "unfit", Image: "unfit"}}},
	}
	_, err = kube.DryRun(ctx, in.api, webhookPods, unfit)
	expectRefusal(t, err, `violates PodSecurity "restricted`)

	pods, err := in.webhookPods(ctx)
	check(t, err)
	if len(pods) == 0 {
		t.Errorf("no pod of the webhook is there")
	}
	for _, pod := range pods {
		if pod.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %s is %s", pod.Name, pod.Status.Phase)
		}
	}
}

// applyPackage applies the folder that kpt users fetch: the objects of cert-manager's overlay, at their defaults.
func (in *installation) applyPackage(t *testing.T) {
	rendered, err := in.kubectl(t.Context(), "kustomize", in.folder+"/kustomize")
	check(t, err)
	_, err = kube.Get[metav1.APIGroup](t.Context(), in.api, "/apis/"+certManagerGroup)
	if kube.IsNotFound(err) {
		objects := slices.DeleteFunc(strings.Split(rendered, "\n---\n"), func(object string) bool {
			return strings.Contains(object, "apiVersion: "+certManagerGroup+"/")
		})
		rendered = strings.Join(objects, "\n---\n")
		t.Logf("the objects of %s are left out: this cluster has no cert-manager", certManagerGroup)
	} else {
		check(t, err)
	}
	_, err = in.kubectlWith(t.Context(), rendered, "apply", "--dry-run=server", "--filename=-")
	check(t, err)
}

// expectRefusal fails the check if there was no refusal, or not with the words.
func expectRefusal(t *testing.T, err error, words ...string) {
	var refused *kube.Refusal
	if !errors.As(err, &refused) {
		t.Errorf("error %v, want a refusal that says %q", err, words)
		return
	}
	for _, word := range words {
		if !strings.Contains(refused.Status.Message, word) {
			t.Errorf("the refusal does not say %q: %s", word, refused.Status.Message)
		}
	}
}
