package checks

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/pki"
)

// certManager is the overlay for production. The checks play cert-manager: they read its objects as the API
// server has them, and do what those say.
var certManager = overlay{
	name:    "cert-manager",
	certify: playCertManager,
	renew:   renewByCertManager,
	once:    true,
}

const (
	certManagerGroup = "cert-manager.io"
	certManagerPath  = "/apis/" + certManagerGroup + "/v1/namespaces/" + namespace
	injectAnnotation = "cert-manager.io/inject-ca-from"
)

// issuer and certificate are what is read of cert-manager's objects (cert-manager: pkg/apis/certmanager/v1).
type issuer struct {
	Spec struct {
		SelfSigned *struct{} `json:"selfSigned"`
		CA         struct {
			SecretName string `json:"secretName"`
		} `json:"ca"`
	} `json:"spec"`
}

type certificate struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		IsCA       bool     `json:"isCA"`
		DNSNames   []string `json:"dnsNames"`
		SecretName string   `json:"secretName"`
		IssuerRef  struct {
			Name string `json:"name"`
		} `json:"issuerRef"`
	} `json:"spec"`
}

// playCertManager issues the webhook's certificate and injects the CA of its issuer.
func playCertManager(ctx context.Context, in *installation) error {
	config, err := kube.Get[admissionregistrationv1.MutatingWebhookConfiguration](ctx, in.api, configurations+"/"+webhook)
	if err != nil {
		return err
	}
	name, err := injectedFrom(config)
	if err != nil {
		return err
	}
	if in.authority, err = pki.NewAuthority("imds-ca"); err != nil {
		return err
	}
	secret, err := in.issue(ctx, name)
	if err != nil {
		return err
	}
	if _, err := kube.Create(ctx, in.api, secrets, secret); err != nil {
		return err
	}
	var patch []map[string]any
	for i := range config.Webhooks {
		path := fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i)
		patch = append(patch, map[string]any{"op": "add", "path": path, "value": secret.Data["ca.crt"]})
	}
	return in.api.Patch(ctx, configurations+"/"+webhook, kube.JSONPatch, patch)
}

// renewByCertManager issues the next certificate of the same CA.
func renewByCertManager(ctx context.Context, in *installation) error {
	secret, err := in.issue(ctx, webhook)
	if err != nil {
		return err
	}
	_, err = kube.Do[any](ctx, in.api.Request(http.MethodPut, secrets+"/"+secret.Name), secret)
	return err
}

// injectedFrom is the name of the Certificate whose CA the configuration asks for.
func injectedFrom(config *admissionregistrationv1.MutatingWebhookConfiguration) (string, error) {
	value := config.Annotations[injectAnnotation]
	if value != namespace+"/"+webhook {
		return "", fmt.Errorf("the configuration's annotation %s is %q, want the Certificate %s/%s", injectAnnotation, value, namespace, webhook)
	}
	return webhook, nil
}

// issue returns the Secret for a Certificate, issued by the CA that its issuer's own Certificate stands for.
func (in *installation) issue(ctx context.Context, name string) (*corev1.Secret, error) {
	wanted, err := kube.Get[certificate](ctx, in.api, certManagerPath+"/certificates/"+name)
	if err != nil {
		return nil, err
	}
	if err := in.checkIssuer(ctx, wanted.Spec.IssuerRef.Name); err != nil {
		return nil, fmt.Errorf("the Certificate %s: %w", name, err)
	}
	pair, err := in.authority.Server(pkix.Name{}, wanted.Spec.DNSNames...)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: wanted.Spec.SecretName},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{"ca.crt": in.authority.Certificate(), "tls.crt": pair.Certificate, "tls.key": pair.Key},
	}, nil
}

// checkIssuer follows an issuer to a self-signed CA, as cert-manager would have to.
func (in *installation) checkIssuer(ctx context.Context, name string) error {
	signs, err := kube.Get[issuer](ctx, in.api, certManagerPath+"/issuers/"+name)
	if err != nil {
		return err
	}
	list, err := kube.Get[struct {
		Items []certificate `json:"items"`
	}](ctx, in.api, certManagerPath+"/certificates")
	if err != nil {
		return err
	}
	for _, ca := range list.Items {
		if !ca.Spec.IsCA || ca.Spec.SecretName != signs.Spec.CA.SecretName {
			continue
		}
		root, err := kube.Get[issuer](ctx, in.api, certManagerPath+"/issuers/"+ca.Spec.IssuerRef.Name)
		if err == nil && root.Spec.SelfSigned == nil {
			err = errors.New("the issuer of the CA is not self-signed")
		}
		return err
	}
	return fmt.Errorf("issuer %s takes its CA from the Secret %q, which no Certificate of a CA fills", name, signs.Spec.CA.SecretName)
}
