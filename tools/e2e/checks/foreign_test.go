package checks

import (
	"context"
	"fmt"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

// others is the namespace of other people, and the prefix of what they have outside of namespaces.
const others = "others"

// checksAmongOthers installs and removes the overlay kind as -kubeconfig does, without cert-manager's kinds, while other
// people's objects come and go.
func (s *site) checksAmongOthers(t *testing.T) {
	ctx := t.Context()
	_, err := s.kubectl(ctx, "delete", "namespace/"+tenant, "crd/issuers."+certManagerGroup, "crd/certificates."+certManagerGroup)
	check(t, err)
	check(t, kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
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
	check(t, err)
	in := newInstallation(ctx, foreign, kind)
	in.install(t)
	in.applyPackage(t)
	in.remove(t)
	check(t, foreign.close(ctx))
	rounds, err := leave()
	check(t, err)
	results.Figure(t, "%d rounds of others", rounds)
}

// bringOthers has others create objects and delete those that they created before, until the returned function is
// called.
func (s *site) bringOthers(t *testing.T) (leave func() (rounds int, err error)) {
	check(t, s.makeNamespace(t.Context(), others))
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
