package main

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// withAgent is an overlay with the component node-agent, and others.
func withAgent(t *testing.T, overlay string, others ...string) rendered {
	t.Helper()
	content, err := loadTree(t).BuildWith(overlay, append([]string{"node-agent"}, others...)...)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, content)
}

func TestAgentComesBesideEachOverlay(t *testing.T) {
	for _, overlay := range render.Overlays {
		t.Run(overlay, func(t *testing.T) {
			want, got := build(t, loadTree(t), overlay), withAgent(t, overlay)
			if want.agent.namespace != nil || want.agent.daemonSet != nil {
				t.Error("the overlay has the agent without the component")
			}
			if got.agent.namespace == nil || got.agent.account == nil || got.agent.quota == nil || got.agent.daemonSet == nil {
				t.Fatalf("a part of the agent is missing: %+v", got.agent)
			}
			for _, object := range got.all {
				if strings.HasPrefix(object.Namespace, contract.NodeNamespace) != (object.Labels["app.kubernetes.io/name"] == contract.NodeAgent && object.Kind != "Namespace") {
					t.Errorf("%s %s is in namespace %q", object.Kind, object.Name, object.Namespace)
				}
			}
			// Of the rest only the patches differ, with the hash in their name.
			if got.patches.Name == want.patches.Name {
				t.Error("the webhook would not take the patches of the component: the ConfigMap has the same name")
			}
			got.agent, got.all, want.all, got.patches, want.patches = agent{}, nil, nil, nil, nil
			for _, r := range []rendered{got, want} {
				r.deployment.Spec.Template.Spec.Volumes = nil
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(rendered{}, agent{})); diff != "" {
				t.Errorf("the webhook's part (-without +with):\n%s", diff)
			}
		})
	}
}

func TestAgentHasTwoCapabilitiesAndNoToken(t *testing.T) {
	r := withAgent(t, "overlays/cert-manager").agent
	no, yes, root := false, true, int64(0)
	pod := r.daemonSet.Spec.Template.Spec
	if len(pod.Containers) != 1 || pod.InitContainers != nil || pod.HostPID || pod.HostIPC || !pod.HostNetwork || pod.DNSPolicy != corev1.DNSDefault {
		t.Errorf("the pod is %+v", pod)
	}
	if pod.ServiceAccountName != r.account.Name || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken ||
		r.account.AutomountServiceAccountToken == nil || *r.account.AutomountServiceAccountToken {
		t.Error("the agent has an API token")
	}
	container := pod.Containers[0]
	if diff := cmp.Diff(&corev1.SecurityContext{
		RunAsUser: &root, RunAsGroup: &root, RunAsNonRoot: &no,
		Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		// The API server takes no other spelling beside allowPrivilegeEscalation.
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"SYS_ADMIN", "NET_ADMIN"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}, container.SecurityContext); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
	if limits := container.Resources.Limits; len(container.Ports) > 0 || limits.Memory().IsZero() || !limits.Cpu().IsZero() ||
		container.Resources.Requests.Cpu().IsZero() || container.Resources.Requests.Memory().IsZero() {
		t.Errorf("ports %v, resources %v", container.Ports, container.Resources)
	}
	if !slices.Equal(container.Command, []string{"/" + contract.Init.Name, "agent"}) {
		t.Errorf("command %v", container.Command)
	}
	for _, mode := range []string{"enforce", "audit", "warn"} {
		if level := r.namespace.Labels["pod-security.kubernetes.io/"+mode]; level != "privileged" {
			t.Errorf("the namespace's level to %s is %q", mode, level)
		}
	}
}

// TestAgentFindsThePods: what the container is told is what is mounted there.
func TestAgentFindsThePods(t *testing.T) {
	pod := withAgent(t, "overlays/cert-manager").agent.daemonSet.Spec.Template.Spec
	container := pod.Containers[0]
	mounts := map[string]corev1.VolumeMount{}
	for _, mount := range container.VolumeMounts {
		mounts[mount.Name] = mount
	}
	variables := map[string]string{}
	for _, variable := range container.Env {
		variables[variable.Name] = variable.Value
	}
	pods, status := mounts["pods"], mounts["status"]
	if variables["IMDS_PODS_DIR"] != pods.MountPath || !pods.ReadOnly || pods.MountPropagation == nil || *pods.MountPropagation != corev1.MountPropagationNone {
		t.Errorf("%v with the mount %+v", variables, pods)
	}
	if !strings.HasPrefix(variables["IMDS_STATUS_FILE"], status.MountPath+"/") || status.ReadOnly {
		t.Errorf("%v with the mount %+v", variables, status)
	}
	kind := corev1.HostPathDirectory
	if diff := cmp.Diff(&corev1.HostPathVolumeSource{Path: "/var/lib/kubelet/pods", Type: &kind}, pod.Volumes[0].HostPath); diff != "" || len(pod.Volumes) != 2 {
		t.Errorf("volumes %+v (-want +got):\n%s", pod.Volumes, diff)
	}
}

func TestAgentIsOnEveryNodeOnce(t *testing.T) {
	r := withAgent(t, "overlays/cert-manager").agent
	spec := r.daemonSet.Spec
	pod := spec.Template.Spec
	if !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) || pod.NodeSelector["kubernetes.io/os"] != "linux" || len(pod.NodeSelector) != 1 {
		t.Errorf("tolerations %v, selector %v", pod.Tolerations, pod.NodeSelector)
	}
	update := spec.UpdateStrategy.RollingUpdate
	if *update.MaxSurge != intstr.FromInt32(0) || *update.MaxUnavailable != intstr.FromString("25%") || spec.MinReadySeconds < 5 {
		t.Errorf("updates %+v, ready after %d s", update, spec.MinReadySeconds)
	}
	if scope := r.quota.Spec.ScopeSelector.MatchExpressions[0]; pod.PriorityClassName != "system-node-critical" || !slices.Contains(scope.Values, pod.PriorityClassName) || r.quota.Spec.Hard.Pods().Value() < 5000 {
		t.Errorf("class %s, the quota %+v", pod.PriorityClassName, r.quota.Spec)
	}
	if diff := cmp.Diff(spec.Selector.MatchLabels, map[string]string{"app.kubernetes.io/name": contract.NodeAgent}); diff != "" || spec.Template.Labels["app.kubernetes.io/name"] != contract.NodeAgent {
		t.Errorf("selects %v of %v", spec.Selector, spec.Template.Labels)
	}
}

func TestOneImagesEntryIsForTheAgentToo(t *testing.T) {
	server, _ := overlayImages(t)
	r := decode(t, renderMine(t, `resources: [../kubevirt-imds/overlays/kind]
components: [../kubevirt-imds/kustomize/components/node-agent]
images: [{name: `+server.NewName+`, newName: registry.example.com/s, newTag: v1}]
`, nil))
	const want = "registry.example.com/s:v1"
	if agent, told := r.agent.daemonSet.Spec.Template.Spec.Containers[0].Image, r.deployment.Spec.Template.Annotations["imds.kubevirt.io/server-image"]; agent != want || told != want {
		t.Errorf("the agent runs %s, the sidecars %s, want %s", agent, told, want)
	}
}

// TestAgentTakesThePlaceOfInit compares the pods of both ways.
func TestAgentTakesThePlaceOfInit(t *testing.T) {
	annotations := map[string]string{annotation.BridgeName: "k6t-net1", annotation.PreferredBridge: "k6t-eth0"}
	want, got := injectWith(t, annotations, "cert-manager", "../images"), injectWith(t, annotations, "cert-manager", "node-agent")
	if names := containerNames(got.Spec.InitContainers); !slices.Equal(names, []string{contract.Server.Name}) {
		t.Fatalf("init containers %v", names)
	}
	by := map[string]string{want.Annotations[annotation.WiredBy]: contract.Init.Name, got.Annotations[annotation.WiredBy]: contract.Server.Name}
	if diff := cmp.Diff(map[string]string{annotation.WiredBySidecar: contract.Init.Name, annotation.WiredByNodeAgent: contract.Server.Name}, by); diff != "" {
		t.Errorf("who wires (-want +got):\n%s", diff)
	}

	// What imds-init was told the server now knows: it tells the agent.
	variables := func(pod *corev1.Pod, container corev1.Container) map[string]string {
		all := map[string]string{}
		for _, variable := range container.Env {
			all[variable.Name] = downward(t, pod, variable)
		}
		return all
	}
	told := variables(want, want.Spec.InitContainers[0])
	server := serverIn(t, got.Spec.InitContainers)
	knows := variables(got, server)
	if len(told) < 3 {
		t.Fatalf("%s is told %v", contract.Init.Name, told)
	}
	for name, value := range told {
		if knows[name] != value {
			t.Errorf("%s=%q, want %q", name, knows[name], value)
		}
	}
	// As the agent looks for it.
	volume := slices.IndexFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == contract.NodeVolume })
	mount := slices.IndexFunc(server.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == contract.NodeVolume })
	if volume < 0 || mount < 0 || got.Spec.Volumes[volume].EmptyDir.Medium != "" || got.Spec.Volumes[volume].EmptyDir.SizeLimit.IsZero() ||
		server.VolumeMounts[mount].ReadOnly || knows["IMDS_NODE_SOCKET"] != server.VolumeMounts[mount].MountPath+"/"+contract.NodeSocket {
		t.Fatalf("volumes %+v, mounts %+v, socket %s", got.Spec.Volumes, server.VolumeMounts, knows["IMDS_NODE_SOCKET"])
	}

	// Nothing else differs.
	got.Spec.Volumes = slices.Delete(got.Spec.Volumes, volume, volume+1)
	server.VolumeMounts = slices.Delete(server.VolumeMounts, mount, mount+1)
	before := serverIn(t, want.Spec.InitContainers)
	server.Env = slices.DeleteFunc(server.Env, func(v corev1.EnvVar) bool {
		return !slices.ContainsFunc(before.Env, func(w corev1.EnvVar) bool { return w.Name == v.Name })
	})
	if diff := cmp.Diff(before, server); diff != "" {
		t.Errorf("%s (-sidecar +agent):\n%s", contract.Server.Name, diff)
	}
	for _, pod := range []*corev1.Pod{want, got} {
		delete(pod.Annotations, annotation.WiredBy)
		pod.Spec.InitContainers = nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rest of the pod (-sidecar +agent):\n%s", diff)
	}
}

func TestWaitForIMDSAsksTheServer(t *testing.T) {
	for _, components := range [][]string{{"cert-manager"}, {"cert-manager", "node-agent"}} {
		want := serverIn(t, injectWith(t, nil, components...).Spec.InitContainers)
		got := serverIn(t, injectWith(t, nil, append(components, "wait-for-imds")...).Spec.InitContainers)
		if probe := got.StartupProbe; probe == nil || probe.Exec == nil || !slices.Equal(probe.Exec.Command, []string{"/" + contract.Server.Name, "probe"}) {
			t.Fatalf("startup probe %+v", probe)
		}
		got.StartupProbe = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: the rest of the container (-without +with):\n%s", components, diff)
		}
	}
}

// TestOpenShiftAdmitsTheAgent: the constraints allow what the agent has, and it may
// use them.
func TestOpenShiftAdmitsTheAgent(t *testing.T) {
	all := withAgent(t, "overlays/cert-manager", "openshift")
	// The webhook's user is none of its namespace's range.
	webhook := buildWith(t, "openshift-webhook")
	if binding := webhook.constraints; binding == nil || binding.Namespace != webhook.account.Namespace || binding.RoleRef.Name != "system:openshift:scc:nonroot-v2" ||
		len(binding.Subjects) != 1 || binding.Subjects[0].Name != webhook.account.Name || binding.Subjects[0].Namespace != webhook.account.Namespace {
		t.Errorf("the webhook's ServiceAccount %s has the binding %+v", all.account.Name, binding)
	}
	r := all.agent
	pod := r.daemonSet.Spec.Template.Spec
	own := pod.Containers[0].SecurityContext
	name := r.constraints["metadata"].(map[string]any)["name"].(string)
	if required := r.daemonSet.Spec.Template.Annotations["openshift.io/required-scc"]; required != name {
		t.Errorf("the pod wants the constraints %q, not %q", required, name)
	}
	if of := pod.SecurityContext; of == nil || of.SELinuxOptions == nil || *of.SELinuxOptions != (corev1.SELinuxOptions{Type: "spc_t"}) {
		t.Errorf("the pod's security context %+v", of)
	}
	var capabilities, volumes []any
	for _, capability := range own.Capabilities.Add {
		capabilities = append(capabilities, string(capability))
	}
	for _, volume := range pod.Volumes {
		volumes = append(volumes, map[bool]string{true: "hostPath", false: "emptyDir"}[volume.HostPath != nil])
	}
	for field, want := range map[string]any{
		"allowPrivilegedContainer": *own.Privileged,
		"allowPrivilegeEscalation": *own.AllowPrivilegeEscalation,
		"readOnlyRootFilesystem":   *own.ReadOnlyRootFilesystem,
		"allowHostNetwork":         pod.HostNetwork,
		"allowHostPorts":           true, // with node-agent-metrics; it may open any without
		"allowHostPID":             pod.HostPID,
		"allowHostIPC":             pod.HostIPC,
		"allowHostDirVolumePlugin": true,
		"allowedCapabilities":      capabilities,
		"requiredDropCapabilities": []any{"ALL"},
		"volumes":                  volumes,
		"seccompProfiles":          []any{"runtime/default", "localhost/imds/imds-agent.json"},
		"runAsUser":                map[string]any{"type": "MustRunAsRange", "uidRangeMin": float64(*own.RunAsUser), "uidRangeMax": float64(65532)},
	} {
		if diff := cmp.Diff(want, r.constraints[field]); diff != "" {
			t.Errorf("%s (-what the agent has +allowed):\n%s", field, diff)
		}
	}
	if diff := cmp.Diff([]rbacv1.PolicyRule{{
		APIGroups: []string{"security.openshift.io"}, Resources: []string{"securitycontextconstraints"},
		ResourceNames: []string{name}, Verbs: []string{"use"},
	}}, r.role.Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if r.binding.RoleRef.Name != r.role.Name || r.binding.Namespace != r.role.Namespace ||
		!slices.Equal(r.binding.Subjects, []rbacv1.Subject{{Kind: "ServiceAccount", Name: r.account.Name, Namespace: r.account.Namespace}}) {
		t.Errorf("the binding is %+v", r.binding)
	}
}
