package checks

import (
	"context"
	_ "embed"
	"time"
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
	const pause = 50 * time.Millisecond
	deadline := time.Now().Add(patience)
	for {
		_, err := takeSnapshot(ctx, s.api)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}
