package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/injector/annotation"
)

// nodeAgentPatches is the declared folder with the patch of the component node-agent.
func nodeAgentPatches(t testing.TB) string {
	t.Helper()
	const name = "25-node-agent.yaml"
	dir := t.TempDir()
	patch, err := os.ReadFile(filepath.Join("../kustomize/components/node-agent", name))
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(declaredPatches))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), patch, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func readPod(t *testing.T, object []byte) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := json.Unmarshal(object, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// A pod for the node agent has one container and two volumes more, is Guaranteed if it
// was, and is left alone the next time.
func TestPodForTheNodeAgent(t *testing.T) {
	w := startWebhook(t, nodeAgentPatches(t), immediately)
	for _, name := range []string{"masquerade", "dedicated-cpus", "passt", "token-audiences", "null-lists"} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			object := fixture(t, name)
			response := w.review("/mutate-pod", podRequest(object))
			if name == "masquerade" || name == "dedicated-cpus" {
				checkVerdict(t, filepath.Join("testdata", "shipped", "node-agent-"+name+".verdict.yaml"), response)
			}
			patched := apply(t, object, response)
			before, after := readPod(t, object), readPod(t, patched)
			added := after.Spec.InitContainers[len(before.Spec.InitContainers):]
			if len(added) != 1 || added[0].Name != "imds-server" || added[0].Image != serverImage || *added[0].RestartPolicy != corev1.ContainerRestartPolicyAlways {
				t.Errorf("init containers %+v are added", added)
			}
			var volumes []string
			for _, volume := range after.Spec.Volumes[len(before.Spec.Volumes):] {
				volumes = append(volumes, volume.Name)
			}
			if !slices.Equal(volumes, []string{"imds-token", "imds-node"}) {
				t.Errorf("volumes %q are added", volumes)
			}
			if after.Annotations[annotation.WiredBy] != annotation.WiredByNodeAgent {
				t.Errorf("annotations %v", after.Annotations)
			}
			if isGuaranteed(before) && !isGuaranteed(after) {
				t.Error("a Guaranteed pod is none any more")
			}
			if again := w.review("/mutate-pod", podRequest(patched)); !again.Allowed || again.Patch != nil {
				t.Errorf("the patched pod is not left alone: allowed %v, patch %s", again.Allowed, again.Patch)
			}
		})
	}
}

// In a roll-out the API server may call a replica with the old patches, and again one
// with the new, forth and back.
func TestReplicasWithEitherPatchesLeaveAPodAlone(t *testing.T) {
	replicas := map[string]*webhook{
		annotation.WiredBySidecar:   startWebhook(t, declaredPatches, immediately),
		annotation.WiredByNodeAgent: startWebhook(t, nodeAgentPatches(t), immediately),
	}
	for _, name := range []string{"masquerade", "dedicated-cpus"} {
		for first, w := range replicas {
			object := fixture(t, name)
			patched := apply(t, object, w.review("/mutate-pod", podRequest(object)))
			if by := readPod(t, patched).Annotations[annotation.WiredBy]; by != first {
				t.Errorf("%s, injected for the %s, says %q", name, first, by)
			}
			for second, w := range replicas {
				if again := w.review("/mutate-pod", podRequest(patched)); !again.Allowed || again.Patch != nil {
					t.Errorf("%s, injected for the %s, then by a replica for the %s: %+v", name, first, second, again)
				}
			}
		}
	}
}

// The agent leaves such a pod alone; imds-init in the pod serves it.
func TestPodWithAUserNamespace(t *testing.T) {
	for patches, warned := range map[string]bool{nodeAgentPatches(t): true, declaredPatches: false} {
		w := startWebhook(t, patches, immediately)
		for hostUsers, warns := range map[string]bool{"false": warned, "true": false} {
			object := []byte(strings.Replace(string(fixture(t, "masquerade")), `"spec":{`, `"spec":{"hostUsers":`+hostUsers+`,`, 1))
			if users := readPod(t, object).Spec.HostUsers; users == nil {
				t.Fatal("the fixture is not changed")
			}
			response := w.review("/mutate-pod", podRequest(object))
			written := readPod(t, apply(t, object, response)).Annotations
			if said := len(response.Warnings) == 1 && strings.Contains(response.Warnings[0], "hostUsers"); said != warns || strings.Contains(written[annotation.Warnings], "hostUsers") != warns || written[annotation.Injected] != "true" {
				t.Errorf("hostUsers %s with %s: warnings %q, annotations %v", hostUsers, patches, response.Warnings, written)
			}
		}
	}
}
