package checks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// policyMessage begins what a user sees whose namespace may not ask.
const policyMessage = enabledAnnotation + `: "true" is not allowed in this namespace`

// policyAlone has the component policy in the cluster and nothing else of the product: what is left where the rest was
// deleted first.
func (s *site) policyAlone(t *testing.T) {
	ctx := t.Context()
	folder := filepath.Join(s.folder, "overlays", "policy")
	check(t, os.Mkdir(folder, 0o755))
	check(t, os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte("components: [../../kustomize/components/policy]\n"), 0o644))
	_, err := s.kubectl(ctx, "apply", "-k", folder)
	check(t, err)
	t.Cleanup(func() {
		_, err := s.kubectl(context.WithoutCancel(ctx), "delete", "-k", folder)
		check(t, err)
	})
	check(t, s.appliesAgain(ctx, folder, true))

	asking := map[string]string{enabledAnnotation: "true"}
	try := func(annotations map[string]string) error {
		_, err := kube.DryRun(ctx, s.api, virtualMachinesPath, newVM("policed", "masquerade", annotations))
		return err
	}
	awaitRefusal := func(annotations map[string]string, refused bool) {
		t.Helper()
		check(t, kube.Poll(ctx, patience, func(context.Context) (string, error) {
			err := try(annotations)
			var refusal *kube.Refusal
			switch isRefused := errors.As(err, &refusal); {
			case err != nil && !isRefused:
				return "", err
			case isRefused != refused:
				return "the policy is not in force yet", nil
			}
			return "", nil
		}))
	}
	awaitRefusal(asking, true)
	expectRefusal(t, try(asking), policyMessage)
	_, err = kube.DryRun(ctx, s.api, instancesPath, newInstance("policed", "masquerade", asking))
	expectRefusal(t, err, policyMessage)
	check(t, try(nil))
	_, err = kube.DryRun(ctx, s.api, instancesPath, newInstance("policed", "masquerade", nil))
	check(t, err)

	label := func(ctx context.Context, value any) error {
		return s.api.Patch(ctx, namespaces+"/"+tenant, kube.MergePatch, map[string]any{"metadata": map[string]any{"labels": map[string]any{prefix + "allowed": value}}})
	}
	check(t, label(ctx, "true"))
	t.Cleanup(func() { check(t, label(context.WithoutCancel(ctx), nil)) })
	awaitRefusal(asking, false)
	expectRefusal(t, try(map[string]string{enabledAnnotation: "true", prefix + "token-audiences": "vault"}),
		prefix+"token-audiences: vault is not allowed here, only: none")
}
