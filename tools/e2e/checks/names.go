package checks

import (
	"context"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// Names are those of all checks in a cluster that is there for them alone.
func Names() []string {
	var names []string
	add := func(subject string, checks ...suite.Check) {
		for _, c := range checks {
			names = append(names, subject+"/"+c.Name)
		}
	}
	s := &site{cluster: new(cluster.Cluster)}
	for _, o := range []overlay{kind, certManager, manual} {
		in := newInstallation(context.Background(), s, o)
		add(o.name, append(in.checks(), in.install(), in.remove())...)
	}
	add("upgrade", upgradeChecks(context.Background(), s, nil)...)
	add("kubeconfig", foreignChecks(s)...)
	return names
}
