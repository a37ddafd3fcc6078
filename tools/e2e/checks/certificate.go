package checks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

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
