// Package podsecurity asks Kubernetes' own evaluator of the Pod Security Standards what
// the sidecars need of a VM's namespace.
package podsecurity

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// testdata are the webhook's cases: KubeVirt's pod, and what the webhook makes of it with
// the patches that are shipped.
const testdata = "../../../../injector/testdata"

// launcher returns the pod that KubeVirt makes, changed as a verdict of the webhook says.
func launcher(t *testing.T, verdict string) *corev1.Pod {
	t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(testdata, name))
		if err == nil {
			text, err = yaml.YAMLToJSON(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := read("pod/masquerade.pod.yaml")
	if verdict != "" {
		var answer struct{ Patch jsonpatch.Patch }
		if err := json.Unmarshal(read(verdict), &answer); err != nil {
			t.Fatal(err)
		}
		var err error
		if text, err = answer.Patch.Apply(text); err != nil {
			t.Fatal(err)
		}
	}
	var pod corev1.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// violations are what a level refuses of a pod, by all versions of the standards since
// the oldest Kubernetes that is supported; empty: nothing.
func violations(t *testing.T, level api.Level, pod *corev1.Pod) string {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	versions := []api.Version{api.LatestVersion()}
	for minor := 30; minor <= 37; minor++ {
		versions = append(versions, api.MajorMinorVersion(1, minor))
	}
	var all []string
	for _, version := range versions {
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: level, Version: version}, &pod.ObjectMeta, &pod.Spec))
		if !result.Allowed {
			all = append(all, fmt.Sprintf("%s: %s", version.String(), result.ForbiddenDetail()))
		}
	}
	return strings.Join(all, "\n")
}

func TestWithTheNodeAgentBaselineTakesThePod(t *testing.T) {
	if refused := violations(t, api.LevelBaseline, launcher(t, "")); refused != "" {
		t.Fatalf("KubeVirt's own pod is refused: %s", refused)
	}
	if refused := violations(t, api.LevelBaseline, launcher(t, "shipped/node-agent-masquerade.verdict.yaml")); refused != "" {
		t.Errorf("the pod for the node agent is refused: %s", refused)
	}
	if refused := violations(t, api.LevelBaseline, launcher(t, "shipped/masquerade.verdict.yaml")); !strings.Contains(refused, "NET_ADMIN") {
		t.Errorf("the pod with imds-init is not refused for NET_ADMIN: %q", refused)
	}
}

func TestWithTheNodeAgentWeAddNothingThatRestrictedRefuses(t *testing.T) {
	before, after := launcher(t, ""), launcher(t, "shipped/node-agent-masquerade.verdict.yaml")
	if was, is := violations(t, api.LevelRestricted, before), violations(t, api.LevelRestricted, after); was != is {
		t.Errorf("restricted refused of KubeVirt's pod\n%s\nand refuses now\n%s", was, is)
	}
	// Ours alone, with the sysctl, and without what the pod's own settings give them.
	ours := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers:  after.Spec.InitContainers[len(before.Spec.InitContainers):],
		Volumes:         after.Spec.Volumes[len(before.Spec.Volumes):],
		SecurityContext: &corev1.PodSecurityContext{Sysctls: after.Spec.SecurityContext.Sysctls},
	}}
	if len(ours.Spec.InitContainers) != 1 || len(ours.Spec.Volumes) != 2 || len(ours.Spec.SecurityContext.Sysctls) == 0 {
		t.Fatalf("not all of ours: %+v", ours.Spec)
	}
	if refused := violations(t, api.LevelRestricted, ours); refused != "" {
		t.Errorf("our part is refused: %s", refused)
	}
	ours.Spec.InitContainers[0].SecurityContext.Capabilities = nil
	if refused := violations(t, api.LevelRestricted, ours); !strings.Contains(refused, "imds-server") {
		t.Errorf("without drop ALL it is not refused: %q", refused)
	}
}
