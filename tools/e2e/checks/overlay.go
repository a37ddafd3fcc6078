package checks

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/pki"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

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

	// authority is the CA where the checks play cert-manager.
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
