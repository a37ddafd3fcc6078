package checks

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// others is the namespace of other people, and the prefix of what they have outside of namespaces.
const others = "others"

// foreignChecks are about check -kubeconfig itself. They come last: they take cert-manager's kinds away.
func foreignChecks(s *site) []suite.Check {
	return []suite.Check{{
		Name: "others", Proves: "check -kubeconfig passes without cert-manager, while other people's objects come and go",
		Run: s.checksAmongOthers,
	}}
}

// checksAmongOthers leaves out, for the time they take, the checks that do not look at what else is in the cluster.
func (s *site) checksAmongOthers(t *suite.T) {
	ctx := t.Context()
	_, err := s.kubectl(ctx, "delete", "namespace/"+tenant, "crd/issuers."+certManagerGroup, "crd/certificates."+certManagerGroup)
	t.Check(err)
	t.Check(kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		_, err := kube.Get[metav1.APIGroup](ctx, s.api, "/apis/"+certManagerGroup)
		switch {
		case kube.IsNotFound(err):
			return "", nil
		case err != nil:
			return "", err
		}
		return "the API still has the group " + certManagerGroup, nil
	}))
	leave := s.bringOthers(t)

	foreign, err := openForeignSite(ctx, s.command, s.cluster.DialContext)
	t.Check(err)
	var output strings.Builder
	results := suite.New(&output, regexp.MustCompile("^kind/(manifests/package|remove)$"), suite.ByProof)
	foreign.check(ctx, []overlay{kind}, results, Options{})
	rounds, leaveErr := leave()
	if err := errors.Join(results.Finish(), foreign.close(ctx), leaveErr); err != nil {
		t.Fatalf("%v\n%s", err, output.String())
	}
	t.Logf("%d times others created and deleted a VM, an instance, a pod and a webhook", rounds)
}

// bringOthers has others create objects and delete those that they created before, until the returned function is
// called.
func (s *site) bringOthers(t *suite.T) (leave func() (rounds int, err error)) {
	t.Check(s.makeNamespace(t.Context(), others))
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	ended := make(chan error, 1)
	rounds := 0
	go func() {
		var err error
		for ; ctx.Err() == nil && err == nil; rounds++ {
			err = s.changeOthers(context.WithoutCancel(ctx), rounds)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		ended <- err
	}()
	return func() (int, error) {
		stop()
		return rounds, <-ended
	}
}

// changeOthers creates the objects of a round and deletes those of the round before.
func (s *site) changeOthers(ctx context.Context, round int) error {
	meta := metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", others, round)}
	vm, vmi := newVM(meta.Name, "masquerade", nil), newInstance(meta.Name, "masquerade", nil)
	pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		SchedulingGates: []corev1.PodSchedulingGate{{Name: "example.org/never"}},
		Containers:      []corev1.Container{{Name: "none", Image: computeImage}},
	}}
	config := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta}
	for _, object := range []struct {
		path string
		body any
	}{
		{"/apis/kubevirt.io/v1/namespaces/" + others + "/virtualmachines", vm},
		{"/apis/kubevirt.io/v1/namespaces/" + others + "/virtualmachineinstances", vmi},
		{"/api/v1/namespaces/" + others + "/pods", pod},
		{configurations, config},
	} {
		if _, err := kube.Create(ctx, s.api, object.path, &object.body); err != nil {
			return err
		}
		if round == 0 {
			continue
		}
		if err := s.api.Delete(ctx, fmt.Sprintf("%s/%s-%d", object.path, others, round-1)); err != nil {
			return err
		}
	}
	return nil
}
