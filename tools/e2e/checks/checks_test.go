package checks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

var (
	withCluster = flag.Bool("cluster", false, "start a cluster for the tests, as root")
	kubeconfig  = flag.String("kubeconfig", "", "a cluster that is there already, with KubeVirt and the images in it, such as one of kind after\n"+
		"just kind-load: the overlay kind alone, and no pod that runs")
	keep = flag.Bool("keep", false, "wait for Ctrl-C after the first overlay with a failed check, or after the last, and leave it\ninstalled until then")
)

// here is where the product is installed. Where all checks are skipped, nothing can be done with it.
var here = &site{cluster: new(cluster.Cluster)}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (status int) {
	var closing func() error
	var err error
	switch ctx := context.Background(); {
	case *kubeconfig != "":
		results.Partial()
		here, err = openForeignSite(ctx, reaching(*kubeconfig), nil)
		closing = func() error { return here.close(ctx) }
	case *withCluster:
		closing, err = openOwnSite(ctx, &status)
	default:
		results.SkipAll("it needs a cluster: go test ./checks -cluster")
		return results.Main(m, "checks.txt", results.ByProof)
	}
	if err == nil {
		status = results.Main(m, "checks.txt", results.ByProof)
		err = closing()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// openOwnSite starts a cluster. The logs of it are kept if the status is not 0 in the end.
func openOwnSite(ctx context.Context, status *int) (closing func() error, err error) {
	c, err := cluster.Up(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	here, err = openSite(ctx, c, os.Stderr)
	if err != nil {
		return nil, errors.Join(err, c.Down(true))
	}
	return func() error { return errors.Join(here.close(ctx), c.Down(*status != 0)) }, nil
}

// The tests that follow are in this order: the last takes cert-manager's kinds away.

func TestOverlays(t *testing.T) {
	overlays := []overlay{kind, certManager, manual}
	if *kubeconfig != "" {
		overlays = overlays[:1]
	}
	for i, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			in := newInstallation(t.Context(), here, o)
			in.test(t, i == len(overlays)-1)
		})
	}
}

func TestUpgrade(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	u := newUpgrade(t, here)
	u.present.check(t, "forward", "VMs of the earlier version keep IMDS when they are migrated, stopped and started", u.forward)
	u.present.check(t, "back", "VMs of this version keep IMDS in the earlier one, after a rollback", u.goBack)
}

func TestKubeconfig(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	results.Check(t, "kubeconfig", "others", "-kubeconfig passes without cert-manager, while other people's objects come and go", here.checksAmongOthers)
}

// test installs the overlay, does all its checks, and deletes it.
func (in *installation) test(t *testing.T, last bool) {
	in.outage = sync.OnceValue(func() error { return in.beginOutage(t.Context()) })
	defer in.must(t, "remove", "kubectl delete -k leaves nothing behind", in.remove)
	in.must(t, "install", "kubectl apply -k, without a warning, gives an admitting webhook", in.install)
	if t.Failed() {
		return
	}
	for _, group := range []struct {
		name string
		test func(*testing.T)
	}{
		{"manifests", in.testManifests}, {"rights", in.testRights}, {"pods", in.testPods}, {"limits", in.testLimits},
		{"vms", in.testVirtualMachines}, {"instances", in.testInstances}, {"running", in.testRunningPod},
		{"availability", in.testAvailability}, {"ca", in.testCABundle}, {"outage", in.testOutage},
	} {
		t.Run(group.name, group.test)
	}
	if *keep && (last || t.Failed()) {
		ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
		defer stop()
		fmt.Printf("%s is installed until Ctrl-C; %s\n", in.name, in.howToEnter())
		<-ctx.Done()
	}
}

// check runs a check, which tells more about the webhook when it fails.
func (in *installation) check(t *testing.T, name, proves string, run func(*testing.T)) {
	results.Check(t, in.subject, name, proves, func(t *testing.T) {
		t.Cleanup(func() {
			if t.Failed() {
				in.explain(t)
			}
		})
		run(t)
	})
}

// must is check for what is done even where -run leaves the check out, because others depend on it.
func (in *installation) must(t *testing.T, name, proves string, run func(*testing.T)) {
	done := results.Skipping()
	in.check(t, name, proves, func(t *testing.T) { done = true; run(t) })
	if !done {
		run(t)
	}
}

// howToEnter tells a person how to look around.
func (s *site) howToEnter() string {
	if s.cluster == nil {
		return "kubectl reaches it"
	}
	return "a shell in the cluster:\n" + s.cluster.ShellCommand()
}
