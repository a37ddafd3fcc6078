package checks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
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

// servedCertificate connects to a pod of the webhook as the API server does, and returns the serial number of
// the certificate that it shows. One that the API server would not trust is an error.
func (in *installation) servedCertificate(ctx context.Context, pod corev1.Pod) (serial string, err error) {
	stored, err := kube.Get[admissionregistrationv1.MutatingWebhookConfiguration](ctx, in.api, configurations+"/"+webhook)
	if err != nil {
		return "", err
	}
	config := stored.Webhooks[0].ClientConfig
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(config.CABundle) {
		return "", errors.New("the caBundle of the MutatingWebhookConfiguration holds no certificate")
	}
	raw, err := in.cluster.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, "8443"))
	if err != nil {
		return "", err
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: config.Service.Name + "." + config.Service.Namespace + ".svc"})
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", fmt.Errorf("pod %s: %w", pod.Name, err)
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// servedCertificates returns the serial number that each pod shows, by the pod's name.
func (in *installation) servedCertificates(ctx context.Context, pods []corev1.Pod) (map[string]string, error) {
	serials := map[string]string{}
	for _, pod := range pods {
		serial, err := in.servedCertificate(ctx, pod)
		if err != nil {
			return nil, err
		}
		serials[pod.Name] = serial
	}
	return serials, nil
}

// awaitOtherCertificates returns when no pod shows the certificate that it showed before.
func (in *installation) awaitOtherCertificates(ctx context.Context, pods []corev1.Pod, before map[string]string) error {
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		now, err := in.servedCertificates(ctx, pods)
		if err != nil {
			return "", err
		}
		for name, serial := range now {
			if serial == before[name] {
				return "pod " + name + " still serves the old certificate", nil
			}
		}
		return "", nil
	})
}
