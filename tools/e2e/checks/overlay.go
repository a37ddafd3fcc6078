package checks

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/pki"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
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

// installation is an overlay in a cluster.
type installation struct {
	*site
	overlay
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
	in := &installation{site: s, overlay: o}
	in.outage = sync.OnceValue(func() error { return in.beginOutage(ctx) })
	in.vm = sync.OnceValues(func() (*VM, error) { return in.startVM(ctx) })
	return in
}

// path of the overlay's folder, a copy.
func (in *installation) path() string { return filepath.Join(in.folder, "overlays", in.name) }

// run installs the overlay and does the checks that are selected.
func (in *installation) run(ctx context.Context, results *suite.Suite) {
	if results.Must(ctx, in.name, in.explained(in.install())[0]) {
		results.Run(ctx, in.name, in.explained(in.checks()...))
	}
}

// uninstall deletes the overlay, which is a check too.
func (in *installation) uninstall(ctx context.Context, results *suite.Suite) {
	results.Must(ctx, in.name, in.explained(in.remove())[0])
}

// checks are all but install and remove, which frame them.
func (in *installation) checks() []suite.Check {
	var all []suite.Check
	for _, subject := range []func(*installation) []suite.Check{
		manifestChecks, rightChecks, podChecks, limitChecks, virtualMachineChecks, instanceChecks, runningPodChecks, availabilityChecks,
		caBundleChecks, outageChecks,
	} {
		all = append(all, subject(in)...)
	}
	return all
}

// install applies the overlay and waits until the webhook admits.
func (in *installation) install() suite.Check {
	return suite.Check{Name: "install", Proves: "kubectl apply -k, without a warning, gives an admitting webhook", Run: func(t *suite.T) {
		ctx := t.Context()
		var err error
		in.before, err = in.takeSnapshot(ctx)
		t.Check(err)
		if in.prepare != nil {
			t.Check(in.prepare(ctx, in))
		}
		begin := time.Now()
		t.Check(in.apply(ctx))
		t.Figure("%.1f s", time.Since(begin).Seconds())
	}}
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
