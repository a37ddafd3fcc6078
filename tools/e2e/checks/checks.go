// Package checks proves on a real Kubernetes that what users install does what the README says: each overlay is
// applied with kubectl, checked and deleted, and a VM's pod that got its sidecars really runs.
//
// cert-manager and KubeVirt need not be there. The checks then play their parts, with kinds that have no schema.
package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// Options say what is checked and where.
type Options struct {
	// Cluster is one that is there for this alone. Without it, Kubeconfig is of one that was there before: then
	// only the overlay kind is checked, and no pod runs, since that takes a look into the node.
	Cluster    *cluster.Cluster
	Kubeconfig string
	// Filter matches the full names, overlay/check, of the checks to run.
	Filter *regexp.Regexp
	// Keep waits, after the first overlay with a failed check, or else after the last one, until the context
	// ends, with the overlay installed.
	Keep bool
	// Out gets a line at the begin and at the end of each check, what failed, and the table of what was proved.
	Out io.Writer
}

// Run runs the checks. It fails if one of them does.
func Run(ctx context.Context, options Options) (err error) {
	var s *site
	choice := []overlay{kind}
	if options.Cluster != nil {
		choice = append(choice, certManager, manual)
		s, err = openSite(ctx, options.Cluster, options.Out)
	} else {
		s, err = openForeignSite(ctx, reaching(options.Kubeconfig), nil)
	}
	if err != nil {
		return err
	}
	// Also what was interrupted is removed.
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()

	results := suite.New(options.Out, options.Filter, suite.ByProof)
	s.check(ctx, choice, results, options)
	if s.cluster != nil && ctx.Err() == nil {
		results.Run(ctx, "upgrade", upgradeChecks(ctx, s, options.Out))
		results.Run(ctx, "kubeconfig", foreignChecks(s))
	}
	return results.Finish()
}

// check installs each overlay, does the checks that are selected, and deletes it.
func (s *site) check(ctx context.Context, choice []overlay, results *suite.Suite, options Options) {
	installations := selectInstallations(ctx, s, choice, results)
	for i, in := range installations {
		in.run(ctx, results)
		if last := i == len(installations)-1; options.Keep && (last || results.Failed() > 0) {
			fmt.Fprintf(options.Out, "%s is installed until Ctrl-C; %s\n", in.name, s.howToEnter())
			<-ctx.Done()
		}
		if ctx.Err() == nil || s.cluster == nil {
			in.uninstall(context.WithoutCancel(ctx), results)
		}
		if ctx.Err() != nil {
			break
		}
	}
}

// selectInstallations returns an installation of each overlay of which at least one check is to be run.
func selectInstallations(ctx context.Context, s *site, choice []overlay, results *suite.Suite) []*installation {
	var selected []*installation
	for _, overlay := range choice {
		in := newInstallation(ctx, s, overlay)
		if results.Selects(in.name, append(in.checks(), in.install(), in.remove())) {
			selected = append(selected, in)
		}
	}
	return selected
}

// howToEnter tells a person how to look around.
func (s *site) howToEnter() string {
	if s.cluster == nil {
		return "kubectl reaches it"
	}
	return "a shell in the cluster:\n" + s.cluster.ShellCommand()
}

// patience is how long anything may take that the cluster does by itself. On an idle machine all of it takes a
// few seconds.
const patience = time.Minute
