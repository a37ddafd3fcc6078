package checks

import (
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// manifestChecks are about what was applied.
func manifestChecks(in *installation) []suite.Check {
	return []suite.Check{
		{Name: "manifests/again", Proves: "applied again, it changes nothing", Run: in.applyAgain},
		{Name: "manifests/restricted", Proves: "its namespace enforces Pod Security restricted, and its pods are there", Run: in.restricted},
		{Name: "manifests/package", Proves: "the kpt package passes a server-side dry run", Run: in.applyPackage},
	}
}

// applyAgain also shows that applying does not take the caBundle away.
func (in *installation) applyAgain(t *suite.T) {
	ctx := t.Context()
	_, err := in.kubectl(ctx, "apply", "-k", in.path(), "--dry-run=server")
	t.Check(err)
	// Not the output of apply: for a PodDisruptionBudget it always says "configured". A difference is an error.
	_, err = in.kubectl(ctx, "diff", "-k", in.path())
	t.Check(err)
	_, err = in.kubectl(ctx, "apply", "-k", in.path())
	t.Check(err)
	_, err = in.admit(ctx, launcherPod(t, in.site, "masquerade"))
	t.Check(err)
}

func (in *installation) restricted(t *suite.T) {
	ctx := t.Context()
	found, err := kube.Get[corev1.Namespace](ctx, in.api, "/api/v1/namespaces/"+namespace)
	t.Check(err)
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
	t.Check(err)
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
func (in *installation) applyPackage(t *suite.T) {
	rendered, err := in.kubectl(t.Context(), "kustomize", in.folder+"/kustomize")
	t.Check(err)
	_, err = kube.Get[metav1.APIGroup](t.Context(), in.api, "/apis/"+certManagerGroup)
	if kube.IsNotFound(err) {
		objects := slices.DeleteFunc(strings.Split(rendered, "\n---\n"), func(object string) bool {
			return strings.Contains(object, "apiVersion: "+certManagerGroup+"/")
		})
		rendered = strings.Join(objects, "\n---\n")
		t.Logf("the objects of %s are left out: this cluster has no cert-manager", certManagerGroup)
	} else {
		t.Check(err)
	}
	_, err = in.kubectlWith(t.Context(), rendered, "apply", "--dry-run=server", "--filename=-")
	t.Check(err)
}

// expectRefusal fails the check if there was no refusal, or not with the words.
func expectRefusal(t *suite.T, err error, words ...string) {
	var refused *kube.Error
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
