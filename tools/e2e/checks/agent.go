package checks

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// Names that the component node-agent gives to its objects, and where the API has them.
const (
	agentNamespace = namespace + "-node"
	agentName      = "imds-node-agent"
	agentSets      = "/apis/apps/v1/namespaces/" + agentNamespace + "/daemonsets"
	agentPods      = "/api/v1/namespaces/" + agentNamespace + "/pods"
	agentStatus    = "/run/imds-node-agent/status"
)

// nodeAgent is the overlay kind with the component node-agent, where the VMs' namespace enforces Pod Security baseline.
var nodeAgent = overlay{name: "node-agent", rights: kind.rights, prepare: prepareForAgent}

// agentKustomization is what a user writes whose kubelet has its folder elsewhere.
const agentKustomization = `
resources: [../kind]
components: [../../kustomize/components/node-agent]
patches:
- target: {kind: DaemonSet, name: %s}
  patch: |-
    - {op: replace, path: /spec/template/spec/volumes/0/hostPath/path, value: %s}
`

func prepareForAgent(ctx context.Context, in *installation) error {
	if err := os.Mkdir(in.path(), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(agentKustomization, agentName, cluster.PodsFolder)
	if err := os.WriteFile(filepath.Join(in.path(), "kustomization.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	const enforce = "pod-security.kubernetes.io/enforce"
	label := func(ctx context.Context, value any) error {
		patch := map[string]any{"metadata": map[string]any{"labels": map[string]any{enforce: value}}}
		return in.api.Patch(ctx, namespaces+"/"+tenant, kube.MergePatch, patch)
	}
	in.undo = append(in.undo, func(ctx context.Context) error { return label(ctx, nil) })
	return label(ctx, "baseline")
}

// awaitAgent returns the agent's pod once the DaemonSet says that it is there, and in its newest version.
func (s *site) awaitAgent(ctx context.Context) (*corev1.Pod, error) {
	_, err := kube.Await(ctx, s.api, agentSets, agentName, patience, func(d *appsv1.DaemonSet) string {
		want, status := int32(1), d.Status
		if status.ObservedGeneration == d.Generation && status.UpdatedNumberScheduled == want && status.NumberAvailable == want {
			return ""
		}
		return fmt.Sprintf("of %d nodes %d have the newest agent, %d an available one", want, status.UpdatedNumberScheduled, status.NumberAvailable)
	})
	if err != nil {
		return nil, err
	}
	list, err := kube.Get[corev1.PodList](ctx, s.api, agentPods)
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("%d pods of the agent, want 1", len(list.Items))
	}
	return &list.Items[0], nil
}
