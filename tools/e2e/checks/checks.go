// Package checks proves on a real Kubernetes that what users install does what the README says: each overlay is
// applied with kubectl, checked and deleted, and a VM's pod that got its sidecars really runs.
//
// cert-manager and KubeVirt are not there. Their kinds are, without a schema, and the checks play their parts.
package checks

import (
	"context"
	"io"
	"os"
	"os/exec"
	"regexp"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// Options say what is checked.
type Options struct {
	Cluster *cluster.Cluster
	// Filter matches the full names, overlay/check, of the checks to run.
	Filter *regexp.Regexp
	// Keep opens a shell in the cluster, which Stdin is for, after the first overlay with a failed check, or else
	// after the last overlay, while it is still installed.
	Keep  bool
	Stdin io.Reader
	// Out gets a line for the begin and end of each check, what failed, and a table of what was proved.
	Out io.Writer
}

// Run runs the checks. It fails if one of them does.
func Run(ctx context.Context, options Options) error {
	s, err := prepare(ctx, options.Cluster, options.Out)
	if err != nil {
		return err
	}
	defer os.RemoveAll(s.folder)

	results := suite.New(options.Out, options.Filter)
	installations := selected(ctx, s, results)
	for i, in := range installations {
		in.run(ctx, results)
		if last := i == len(installations)-1; options.Keep && (last || results.Failed() > 0) {
			if err := shell(ctx, options); err != nil {
				return err
			}
			options.Keep = false
		}
		in.uninstall(ctx, results)
	}
	return results.Finish()
}

// selected returns an installation of each overlay of which at least one check is to be run.
func selected(ctx context.Context, s *site, results *suite.Suite) []*installation {
	var found []*installation
	for _, overlay := range []overlay{kind, certManager, manual} {
		in := newInstallation(ctx, s, overlay)
		if results.Selects(in.name, append(in.checks(), in.install(), in.remove())) {
			found = append(found, in)
		}
	}
	return found
}

// shell lets a person look around in the cluster.
func shell(ctx context.Context, options Options) error {
	name, found := os.LookupEnv("SHELL")
	if !found {
		name = "sh"
	}
	io.WriteString(options.Out, "this is a shell in the cluster: kubectl and ctr are here; exit to go on\n")
	command := options.Cluster.Command(ctx, name)
	command.Stdin, command.Stdout, command.Stderr = options.Stdin, options.Out, options.Out
	if err := command.Run(); err != nil {
		if _, ended := err.(*exec.ExitError); !ended {
			return err
		}
	}
	return nil
}

// patience is how long anything may take that the cluster does by itself. On an idle machine all of it takes a
// few seconds.
const patience = time.Minute
