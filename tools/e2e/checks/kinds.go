package checks

import (
	"context"
	_ "embed"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

//go:embed kinds.yaml
var kinds string

// makeKinds gives the API the kinds of KubeVirt and cert-manager.
func (s *site) makeKinds(ctx context.Context) error {
	if _, err := s.kubectlWith(ctx, kinds, "apply", "--filename=-"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "--for=condition=Established", "--timeout="+patience.String(), "crd", "--all"); err != nil {
		return err
	}
	// A kind is established a moment before its objects can be listed, and nothing tells when they can.
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		if _, err := s.takeSnapshot(ctx); err != nil {
			return err.Error(), nil
		}
		return "", nil
	})
}
