package main

import (
	"slices"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// The components that change a VM's pod are shown by what the webhook makes of a
// pod with them.

// injectWith returns a VM's pod, injected by an installation with components.
func injectWith(t *testing.T, annotations map[string]string, components ...string) *corev1.Pod {
	t.Helper()
	all := map[string]string{annotation.Enabled: "true"}
	for name, value := range annotations {
		all[name] = value
	}
	return runWebhook(t, buildWith(t, components...)).inject(t, launcherPod(all))
}

func containerNames(containers []corev1.Container) []string {
	var names []string
	for _, container := range containers {
		names = append(names, container.Name)
	}
	return names
}

// server returns imds-server among containers.
func serverIn(t *testing.T, containers []corev1.Container) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == contract.Server.Name })
	if i < 0 {
		t.Fatalf("no %s among %v", contract.Server.Name, containerNames(containers))
	}
	return containers[i]
}

func TestRegularContainersMovesTheServer(t *testing.T) {
	native := injectWith(t, nil, "cert-manager")
	regular := injectWith(t, nil, "cert-manager", "regular-containers")
	if got := containerNames(regular.Spec.InitContainers); !slices.Equal(got, []string{contract.Init.Name}) {
		t.Errorf("init containers %v", got)
	}
	if got := containerNames(regular.Spec.Containers); !slices.Equal(got, []string{"compute", contract.Server.Name}) {
		t.Errorf("containers %v", got)
	}
	// It is the same container but for what does not suit a regular one.
	want := serverIn(t, native.Spec.InitContainers)
	want.RestartPolicy, want.LivenessProbe = nil, nil
	if diff := cmp.Diff(want, serverIn(t, regular.Spec.Containers)); diff != "" {
		t.Errorf("%s (-native +regular):\n%s", contract.Server.Name, diff)
	}
	native.Spec.InitContainers, regular.Spec.InitContainers = nil, nil
	regular.Spec.Containers = regular.Spec.Containers[:1]
	if diff := cmp.Diff(native, regular); diff != "" {
		t.Errorf("the rest of the pod (-native +regular):\n%s", diff)
	}
}

func TestRequireHeaderCannotBeOptedOut(t *testing.T) {
	for name, annotations := range map[string]map[string]string{
		"nothing said": nil,
		"false said":   {annotation.RequireHeader: "false"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := injectWith(t, annotations, "cert-manager", "require-header")
			if got := pod.Annotations[annotation.RequireHeader]; got != "true" {
				t.Errorf("the annotation is %q", got)
			}
		})
	}
}

func TestRequireHeaderWorksWithRegularContainers(t *testing.T) {
	pod := injectWith(t, nil, "cert-manager", "regular-containers", "require-header")
	container := serverIn(t, pod.Spec.Containers)
	i := slices.IndexFunc(container.Env, func(v corev1.EnvVar) bool { return v.Name == "IMDS_REQUIRE_HEADER" })
	if got := downward(t, pod, container.Env[i]); got != "true" {
		t.Errorf("IMDS_REQUIRE_HEADER is %q", got)
	}
}

func TestReadinessAsksTheServer(t *testing.T) {
	pod := injectWith(t, nil, "cert-manager", "readiness")
	container := serverIn(t, pod.Spec.InitContainers)
	want := []string{"/" + contract.Server.Name, "probe"}
	if probe := container.ReadinessProbe; probe == nil || probe.Exec == nil || !slices.Equal(probe.Exec.Command, want) {
		t.Fatalf("readiness probe %+v", probe)
	}
	container.ReadinessProbe = nil
	if diff := cmp.Diff(serverIn(t, injectWith(t, nil, "cert-manager").Spec.InitContainers), container); diff != "" {
		t.Errorf("the rest of the container (-without +with):\n%s", diff)
	}
}

func TestFailOpenChangesTheFailurePolicyAlone(t *testing.T) {
	want, got := buildWith(t, "cert-manager"), buildWith(t, "cert-manager", "fail-open")
	for i := range want.configuration.Webhooks {
		*want.configuration.Webhooks[i].FailurePolicy = admissionregistrationv1.Ignore
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(rendered{}, agent{})); diff != "" {
		t.Errorf("(-without, but Ignore +with):\n%s", diff)
	}
}
