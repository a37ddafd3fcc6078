package checks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// Names that the manifests give to the webhook's objects, and where the API has them.
const (
	namespace      = "kubevirt-imds"
	webhook        = "imds-webhook"
	webhookSecret  = "imds-webhook-tls"
	configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
	deployments    = "/apis/apps/v1/namespaces/" + namespace + "/deployments"
	webhookPods    = "/api/v1/namespaces/" + namespace + "/pods"
	secrets        = "/api/v1/namespaces/" + namespace + "/secrets"
)

// awaitRollout returns when all replicas are of the newest template and ready, and none else is left.
func (in *installation) awaitRollout(ctx context.Context) error {
	_, err := kube.Await(ctx, in.api, deployments, webhook, patience, func(d *appsv1.Deployment) string {
		want, s := *d.Spec.Replicas, d.Status
		if s.ObservedGeneration == d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want {
			return ""
		}
		return fmt.Sprintf("of %d replicas %d are updated, %d available; %d in all", want, s.UpdatedReplicas, s.AvailableReplicas, s.Replicas)
	})
	return err
}

// awaitAdmission returns when all replicas are of the newest template and the API server reaches them by the Service.
// The Deployment does not tell that: its EndpointSlice is written later, then kube-proxy takes it in, and by no event.
// A replica itself has no such excuse: it serves when it says that it is ready.
func (in *installation) awaitAdmission(ctx context.Context) error {
	if err := in.awaitRollout(ctx); err != nil {
		return err
	}
	if in.cluster != nil {
		pods, err := in.webhookPods(ctx)
		if err != nil {
			return err
		}
		if _, err := in.servedCertificates(ctx, pods); err != nil {
			return err
		}
		if err := in.awaitService(ctx); err != nil {
			return err
		}
	}
	return in.awaitInjection(ctx)
}

// awaitInjection returns when a pod that asks is injected: no event tells when the API server uses a configuration.
func (in *installation) awaitInjection(ctx context.Context) error {
	pod, err := in.readPod("masquerade")
	if err != nil {
		return err
	}
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		stored, err := in.admit(ctx, pod)
		switch {
		case isUnreached(err):
			return err.Error(), nil
		case err == nil && len(sidecars(stored)) == 0:
			return "the API server does not know the configuration yet", nil
		}
		return "", err
	})
}

// awaitService returns when a new connection to the Service leads to a replica. The API server's own connections do not
// tell that: those that are open stay so when the Service has no endpoint.
func (in *installation) awaitService(ctx context.Context) error {
	service, err := kube.Get[corev1.Service](ctx, in.api, "/api/v1/namespaces/"+namespace+"/services/"+webhook)
	if err != nil {
		return err
	}
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		connection, err := in.cluster.DialContext(ctx, "tcp", net.JoinHostPort(service.Spec.ClusterIP, "443"))
		if err != nil {
			return err.Error(), nil
		}
		return "", connection.Close()
	})
}

// isUnreached says whether an error is the API server's that it did not reach a webhook.
func isUnreached(err error) bool {
	var refused *kube.Refusal
	return errors.As(err, &refused) && strings.Contains(refused.Status.Message, "failed calling webhook")
}

// webhookPods are the webhook's pods that are not on their way out.
func (in *installation) webhookPods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := kube.Get[corev1.PodList](ctx, in.api, webhookPods)
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// scale sets the number of replicas.
func (in *installation) scale(ctx context.Context, replicas int) error {
	patch := map[string]any{"spec": map[string]any{"replicas": replicas}}
	return in.api.Patch(ctx, deployments+"/"+webhook, kube.MergePatch, patch)
}

// explain shows what the webhook's pods are doing and the end of their logs.
func (in *installation) explain(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pods", "--namespace=" + namespace, "--output=wide"},
		{"get", "events", "--namespace=" + namespace, "--field-selector=type=Warning"},
		{"logs", "--namespace=" + namespace, "--selector=app.kubernetes.io/name=" + webhook, "--prefix", "--tail=15"},
	} {
		output, _ := in.command(context.Background(), "kubectl", args...).CombinedOutput()
		t.Logf("kubectl %s:\n%s", strings.Join(args, " "), bytes.TrimSpace(output))
	}
}
