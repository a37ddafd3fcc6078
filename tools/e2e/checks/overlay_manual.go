package checks

import (
	"context"
	"path/filepath"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

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
