// Package checks proves on a real Kubernetes that what users install does what the README says: each overlay is applied
// with kubectl, checked and deleted, and a VM's pod that got its sidecars really runs. Its tests run with the flag
// -cluster or -kubeconfig.
//
// cert-manager and KubeVirt need not be there. The tests then do their parts, with kinds that have no schema.
package checks

import "time"

// patience is how long anything may take that the cluster does by itself. On an idle machine all of it takes a
// few seconds.
const patience = time.Minute
