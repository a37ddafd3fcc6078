// Package checks proves on a real Kubernetes that what users install does what the README says: each overlay is applied
// with kubectl, checked and deleted, and a VM's pod that got its sidecars really runs. Its tests run with the flag
// -cluster or -kubeconfig.
//
// cert-manager and KubeVirt need not be there. The tests then do their parts, with kinds that have no schema.
package checks

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/pki"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

// patience is how long anything may take that the cluster does by itself. On an idle machine all of it takes a
// few seconds.
const patience = time.Minute

// overlay is one of the ways to install the product, with what somebody or something else has to do for it.
type overlay struct {
	name string
	// prepare is done before it is applied, certify after. nil: nothing has to be done.
	prepare, certify func(context.Context, *installation) error
	// renew gives the webhook another certificate while it runs. nil: it has one for as long as it runs.
	renew func(context.Context, *installation) error
	// rights are all that the webhook's ServiceAccount may do beyond what every ServiceAccount may.
	rights []right
	// once says that here is checked what no overlay makes a difference to: a VM's pod that really runs, for one.
	once bool
}

// right is a rule of RBAC as the API server resolves it for a user.
type right = authorizationv1.ResourceRule

// installation is an overlay in a cluster.
type installation struct {
	*site
	overlay
	subject     string   // of its checks
	before      snapshot // of the cluster without it
	replicas    int      // of the webhook
	serverImage string   // that the webhook's pods pull before they start

	// authority is the CA where the tests issue in place of cert-manager.
	authority *pki.Authority
	// outage has no replica run, from its first call on.
	outage func() error
	// vm is a VM whose pod runs from the first call on.
	vm func() (*VM, error)
	// undo takes away what the checks themselves have made, the last first.
	undo []func(context.Context) error
}

func newInstallation(ctx context.Context, s *site, o overlay) *installation {
	in := &installation{site: s, overlay: o, subject: o.name}
	in.vm = sync.OnceValues(func() (*VM, error) { return in.startVM(ctx) })
	return in
}

// path of the overlay's folder, a copy.
func (in *installation) path() string { return filepath.Join(in.folder, "overlays", in.name) }

// install applies the overlay and waits until the webhook admits.
func (in *installation) install(t *testing.T) {
	ctx := t.Context()
	var err error
	in.before, err = in.takeSnapshot(ctx)
	check(t, err)
	if in.prepare != nil {
		check(t, in.prepare(ctx, in))
	}
	begin := time.Now()
	check(t, in.apply(ctx))
	results.Figure(t, "%.1f s", time.Since(begin).Seconds())
}

// apply installs the overlay, over another version of it if there is one, and returns when its webhook admits.
func (in *installation) apply(ctx context.Context) error {
	if _, err := in.kubectl(ctx, "apply", "-k", in.path()); err != nil {
		return err
	}
	if in.certify != nil {
		if err := in.certify(ctx, in); err != nil {
			return err
		}
	}
	if err := in.awaitAdmission(ctx); err != nil {
		return err
	}
	d, err := kube.Get[appsv1.Deployment](ctx, in.api, deployments+"/"+webhook)
	if err != nil {
		return err
	}
	in.replicas, in.serverImage = int(*d.Spec.Replicas), d.Spec.Template.Spec.InitContainers[0].Image
	return nil
}

// kind needs nobody: the webhook makes its own certificate and writes its own caBundle.
var kind = overlay{
	name: "kind",
	rights: []right{{
		Verbs:         []string{"get", "patch"},
		APIGroups:     []string{"admissionregistration.k8s.io"},
		Resources:     []string{"mutatingwebhookconfigurations"},
		ResourceNames: []string{webhook},
	}},
}

// certManager is the overlay for production. The tests do what cert-manager does: they read its objects as the API
// server has them, and do what those say.
var certManager = overlay{
	name:    "cert-manager",
	certify: certifyAsCertManager,
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

// certifyAsCertManager issues the webhook's certificate and injects the CA of its issuer.
func certifyAsCertManager(ctx context.Context, in *installation) error {
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

// manual is the overlay for clusters without cert-manager: somebody runs just certs, then and again a year later.
var manual = overlay{
	name:    "manual",
	prepare: func(ctx context.Context, in *installation) error { return in.makeCertificates(ctx) },
	renew: func(ctx context.Context, in *installation) error {
		if err := in.makeCertificates(ctx, "--force"); err != nil {
			return err
		}
		_, err := in.kubectl(ctx, "apply", "-k", in.path())
		return err
	},
}

// makeCertificates runs what just certs runs, for the copy of the overlay.
func (in *installation) makeCertificates(ctx context.Context, options ...string) error {
	folder := filepath.Join(in.path(), "tls", "made-by-just-certs")
	return cluster.RunGo(ctx, in.repository, append([]string{"run", "-buildvcs=false", "./tools/certs", "--out", folder}, options...)...)
}
