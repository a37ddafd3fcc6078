package main

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// eachOverlay runs a test on what every overlay renders to.
func eachOverlay(t *testing.T, test func(t *testing.T, overlay string, r rendered)) {
	t.Helper()
	tree := loadTree(t)
	for _, folder := range render.Overlays {
		overlay := strings.TrimPrefix(folder, "overlays/")
		t.Run(overlay, func(t *testing.T) { test(t, overlay, build(t, tree, folder)) })
	}
}

func TestOverlaysHaveOneOfEachPart(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		if r.namespace == nil || r.account == nil || r.deployment == nil || r.service == nil || r.budget == nil ||
			r.quota == nil || r.networkPolicy == nil || r.configuration == nil || r.patches == nil {
			t.Fatal("a part of the base is missing")
		}
		for _, object := range r.all {
			if object.Labels["app.kubernetes.io/part-of"] != "kubevirt-imds" {
				t.Errorf("%s %s has no label app.kubernetes.io/part-of", object.Kind, object.Name)
			}
			clusterScoped := slices.Contains([]string{"Namespace", "MutatingWebhookConfiguration", "ClusterRole", "ClusterRoleBinding"}, object.Kind)
			if !clusterScoped && object.Namespace != contract.Namespace {
				t.Errorf("%s %s is in namespace %q", object.Kind, object.Name, object.Namespace)
			}
		}
	})
}

func TestOnlyKindAsksForRights(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		automount := r.deployment.Spec.Template.Spec.AutomountServiceAccountToken
		if r.account.AutomountServiceAccountToken == nil || *r.account.AutomountServiceAccountToken {
			t.Error("the ServiceAccount has its token mounted in every pod")
		}
		if overlay != "kind" {
			if r.role != nil || r.binding != nil {
				t.Error("there are RBAC rules")
			}
			if automount == nil || *automount {
				t.Error("the webhook has an API token")
			}
			return
		}
		if automount == nil || !*automount {
			t.Error("the webhook has no API token")
		}
		wanted := []rbacv1.PolicyRule{{
			APIGroups:     []string{"admissionregistration.k8s.io"},
			Resources:     []string{"mutatingwebhookconfigurations"},
			ResourceNames: []string{r.configuration.Name},
			Verbs:         []string{"get", "patch"},
		}}
		if diff := cmp.Diff(wanted, r.role.Rules); diff != "" {
			t.Errorf("rules (-want +got):\n%s", diff)
		}
		subject := rbacv1.Subject{Kind: "ServiceAccount", Name: r.account.Name, Namespace: r.account.Namespace}
		if diff := cmp.Diff([]rbacv1.Subject{subject}, r.binding.Subjects); diff != "" {
			t.Errorf("subjects (-want +got):\n%s", diff)
		}
		if r.binding.RoleRef.Kind != "ClusterRole" || r.binding.RoleRef.Name != r.role.Name {
			t.Errorf("the binding is to %+v", r.binding.RoleRef)
		}
	})
}

// TestRestrictedNamespaceTakesTheWebhook checks the fields that the Pod Security
// profile "restricted" names.
func TestRestrictedNamespaceTakesTheWebhook(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		for _, mode := range []string{"enforce", "audit", "warn"} {
			if level := r.namespace.Labels["pod-security.kubernetes.io/"+mode]; level != "restricted" {
				t.Errorf("the namespace's level to %s is %q", mode, level)
			}
		}
		pod := r.deployment.Spec.Template.Spec
		if pod.HostNetwork || pod.HostPID || pod.HostIPC {
			t.Error("the pod shares a namespace with the node")
		}
		for _, volume := range pod.Volumes {
			if volume.ConfigMap == nil && volume.Secret == nil {
				t.Errorf("volume %s is neither a ConfigMap nor a Secret", volume.Name)
			}
		}
		all := pod.SecurityContext
		if all.RunAsNonRoot == nil || !*all.RunAsNonRoot || all.RunAsUser == nil || *all.RunAsUser != 65532 {
			t.Errorf("the pod's user: %+v", all)
		}
		if all.SeccompProfile == nil || all.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("the pod's seccomp profile: %+v", all.SeccompProfile)
		}
		for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
			own := container.SecurityContext
			if own == nil || own.Capabilities == nil ||
				!slices.Equal(own.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(own.Capabilities.Add) != 0 ||
				own.AllowPrivilegeEscalation == nil || *own.AllowPrivilegeEscalation ||
				own.ReadOnlyRootFilesystem == nil || !*own.ReadOnlyRootFilesystem ||
				own.Privileged != nil || own.RunAsUser != nil || own.RunAsNonRoot != nil || own.SeccompProfile != nil {
				t.Errorf("container %s: %+v", container.Name, own)
			}
		}
	})
}

// TestAPIServerFindsTheWebhook follows a call from the configuration to the port
// that the webhook listens on.
func TestAPIServerFindsTheWebhook(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		pod := r.deployment.Spec.Template
		container := pod.Spec.Containers[0]
		listeners := map[string]int32{"webhook": listenPort(t, container, "--listen"), "health": listenPort(t, container, "--health-listen")}
		declared := map[string]int32{}
		for _, port := range container.Ports {
			declared[port.Name] = port.ContainerPort
		}
		if diff := cmp.Diff(listeners, declared); diff != "" {
			t.Errorf("ports (-listened on +declared):\n%s", diff)
		}
		for _, webhook := range r.configuration.Webhooks {
			target := webhook.ClientConfig.Service
			if target == nil || target.Name != r.service.Name || target.Namespace != r.service.Namespace {
				t.Fatalf("%s calls %+v", webhook.Name, target)
			}
			if i := slices.IndexFunc(r.service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == *target.Port }); i < 0 ||
				r.service.Spec.Ports[i].TargetPort.StrVal != "webhook" {
				t.Errorf("%s calls port %d of the Service's %+v", webhook.Name, *target.Port, r.service.Spec.Ports)
			}
		}
		for name, selector := range map[string]map[string]string{
			"Service":             r.service.Spec.Selector,
			"PodDisruptionBudget": r.budget.Spec.Selector.MatchLabels,
			"NetworkPolicy":       r.networkPolicy.Spec.PodSelector.MatchLabels,
			"Deployment":          r.deployment.Spec.Selector.MatchLabels,
			"anti-affinity":       pod.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm.LabelSelector.MatchLabels,
			"spread":              pod.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels,
		} {
			if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)) {
				t.Errorf("%s selects %v, which pods with %v are not", name, selector, pod.Labels)
			}
		}
		var admitted []string
		for _, port := range r.networkPolicy.Spec.Ingress[0].Ports {
			admitted = append(admitted, port.Port.StrVal)
		}
		if want := slices.Collect(maps.Keys(declared)); !slices.Equal(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(admitted))) {
			t.Errorf("the NetworkPolicy admits %v, the pod has %v", admitted, want)
		}
		for path, probe := range map[string]*corev1.Probe{"/healthz": container.LivenessProbe, "/readyz": container.ReadinessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.StrVal != "health" {
				t.Errorf("the probe of %s is %+v", path, probe)
			}
		}
	})
}

func TestOnlyKindLetsTheWebhookCallSomebody(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		if len(r.networkPolicy.Spec.PolicyTypes) != 2 {
			t.Errorf("policy types %v", r.networkPolicy.Spec.PolicyTypes)
		}
		var want []networkingv1.NetworkPolicyEgressRule
		if overlay == "kind" {
			// To the API server, whose port differs from cluster to cluster.
			tcp := corev1.ProtocolTCP
			want = []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp}}}}
		}
		if diff := cmp.Diff(want, r.networkPolicy.Spec.Egress); diff != "" {
			t.Errorf("egress (-want +got):\n%s", diff)
		}
	})
}

// TestWebhookFindsItsFiles compares the arguments with the mounts.
func TestWebhookFindsItsFiles(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		pod := r.deployment.Spec.Template.Spec
		container := pod.Containers[0]
		mounted := map[string]corev1.Volume{}
		for _, mount := range container.VolumeMounts {
			if !mount.ReadOnly || mount.SubPath != "" {
				t.Errorf("mount %s is writable, or not renewed: %+v", mount.Name, mount)
			}
			mounted[mount.MountPath] = pod.Volumes[slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })]
		}
		patches := mounted[argument(container, "--patches")]
		if patches.ConfigMap == nil || patches.ConfigMap.Name != r.patches.Name {
			t.Errorf("--patches is %+v, the ConfigMap is %s", patches, r.patches.Name)
		}
		if r.patches.Immutable == nil || !*r.patches.Immutable {
			t.Errorf("the ConfigMap %s can be changed by hand: the replicas would differ", r.patches.Name)
		}
		if !strings.HasPrefix(r.patches.Name, contract.PatchesConfigMap+"-") {
			t.Errorf("the ConfigMap %s has no hash: a change would roll nothing", r.patches.Name)
		}
		if overlay == "kind" {
			if !slices.Contains(container.Args, "--self-signed") || argument(container, "--tls-cert") != "" || argument(container, "--tls-key") != "" {
				t.Errorf("arguments %v", container.Args)
			}
			if len(pod.Volumes) != 1 || len(container.VolumeMounts) != 1 {
				t.Errorf("volumes %v with mounts %v, want the patches alone", pod.Volumes, container.VolumeMounts)
			}
			return
		}
		for flag, file := range map[string]string{"--tls-cert": "tls.crt", "--tls-key": "tls.key"} {
			folder, found := strings.CutSuffix(argument(container, flag), "/"+file)
			if !found || mounted[folder].Secret == nil || mounted[folder].Secret.SecretName != "imds-webhook-tls" {
				t.Errorf("%s %s is not in the Secret", flag, argument(container, flag))
			}
		}
	})
}

func TestReplicasSurviveADrain(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		replicas := *r.deployment.Spec.Replicas
		if wanted := map[string]int32{"kind": 1, "cert-manager": 2, "manual": 2}[overlay]; replicas != wanted {
			t.Errorf("%d replicas, want %d", replicas, wanted)
		}
		// With one replica, minAvailable would hold up the drain for ever.
		if r.budget.Spec.MaxUnavailable == nil || r.budget.Spec.MaxUnavailable.IntValue() != 1 || r.budget.Spec.MinAvailable != nil {
			t.Errorf("budget %+v", r.budget.Spec)
		}
		if room := r.quota.Spec.Hard.Pods().Value(); room < int64(2*replicas) {
			t.Errorf("the quota has room for %d pods, a roll-out needs %d", room, 2*replicas)
		}
		if class := r.deployment.Spec.Template.Spec.PriorityClassName; !slices.Contains(r.quota.Spec.ScopeSelector.MatchExpressions[0].Values, class) {
			t.Errorf("the quota is not for priority class %s", class)
		}
	})
}

func TestAPIServerAsksOnlyAboutWhoAsked(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		const create, update = admissionregistrationv1.Create, admissionregistrationv1.Update
		// The refusing ones come first: what the repairing ones then write is no
		// change by a user. Again, where a later webhook may change what is looked
		// at: KubeVirt's adds the default interface to an instance.
		wants := []struct {
			name, path      string
			policy          admissionregistrationv1.FailurePolicyType
			reinvocation    admissionregistrationv1.ReinvocationPolicyType
			group, resource string
			operations      []admissionregistrationv1.OperationType
		}{
			{"pod", contract.MutatePodPath, "Fail", "IfNeeded", "", "pods", []admissionregistrationv1.OperationType{create}},
			{"virtualmachine", contract.MutateVirtualMachinePath, "Fail", "Never", "kubevirt.io", "virtualmachines", []admissionregistrationv1.OperationType{create, update}},
			{"virtualmachineinstance", contract.MutateVirtualMachineInstancePath, "Fail", "IfNeeded", "kubevirt.io", "virtualmachineinstances", []admissionregistrationv1.OperationType{create, update}},
			{"repair.virtualmachine", contract.RepairVirtualMachinePath, "Ignore", "Never", "kubevirt.io", "virtualmachines", []admissionregistrationv1.OperationType{create, update}},
			{"repair.virtualmachineinstance", contract.RepairVirtualMachineInstancePath, "Ignore", "Never", "kubevirt.io", "virtualmachineinstances", []admissionregistrationv1.OperationType{update}},
		}
		if len(r.configuration.Webhooks) != len(wants) {
			t.Fatalf("%d webhooks, want %d", len(r.configuration.Webhooks), len(wants))
		}
		for i, want := range wants {
			webhook := r.configuration.Webhooks[i]
			if name := want.name + "." + annotation.Domain; webhook.Name != name {
				t.Errorf("webhook %d is %s, want %s", i, webhook.Name, name)
			}
			if len(webhook.MatchConditions) == 0 {
				t.Errorf("%s has no match condition: it is asked about everybody", webhook.Name)
			}
			if *webhook.ClientConfig.Service.Path != want.path || *webhook.FailurePolicy != want.policy || *webhook.ReinvocationPolicy != want.reinvocation ||
				*webhook.SideEffects != admissionregistrationv1.SideEffectClassNone || !slices.Equal(webhook.AdmissionReviewVersions, []string{"v1"}) {
				t.Errorf("%s: %+v", webhook.Name, webhook)
			}
			// What a webhook that does not answer holds up.
			if seconds := *webhook.TimeoutSeconds; seconds > 5 || want.policy == admissionregistrationv1.Ignore && seconds > 1 {
				t.Errorf("%s: a time-out of %d s", webhook.Name, seconds)
			}
			wantRule(t, webhook, []string{want.group}, []string{want.resource}, want.operations...)
		}
		if selector := r.configuration.Webhooks[0].ObjectSelector.MatchLabels["kubevirt.io"]; selector != "virt-launcher" {
			t.Errorf("pods are selected by kubevirt.io=%s", selector)
		}
	})
}

func wantRule(t *testing.T, webhook admissionregistrationv1.MutatingWebhook, groups, resources []string, operations ...admissionregistrationv1.OperationType) {
	t.Helper()
	scope := admissionregistrationv1.NamespacedScope
	want := []admissionregistrationv1.RuleWithOperations{{
		Operations: operations,
		Rule:       admissionregistrationv1.Rule{APIGroups: groups, APIVersions: []string{"v1"}, Resources: resources, Scope: &scope},
	}}
	if diff := cmp.Diff(want, webhook.Rules); diff != "" {
		t.Errorf("%s: rules (-want +got):\n%s", webhook.Name, diff)
	}
}

func TestCABundleComesFromTheOverlay(t *testing.T) {
	eachOverlay(t, func(t *testing.T, overlay string, r rendered) {
		injected := r.configuration.Annotations["cert-manager.io/inject-ca-from"]
		if want := map[string]string{"cert-manager": contract.Namespace + "/imds-webhook"}[overlay]; injected != want {
			t.Errorf("the annotation for the CA is %q, want %q", injected, want)
		}
		for _, webhook := range r.configuration.Webhooks {
			var want []byte
			if overlay == "manual" {
				want = r.secret.Data["ca.crt"]
			}
			if string(webhook.ClientConfig.CABundle) != string(want) {
				t.Errorf("the caBundle of %s is %q, want %q", webhook.Name, webhook.ClientConfig.CABundle, want)
			}
		}
	})
}

func TestCertManagerIssuesWhatTheAPIServerAsksFor(t *testing.T) {
	r := build(t, loadTree(t), "overlays/cert-manager")
	spec := func(name string) map[string]any { return r.certManager[name]["spec"].(map[string]any) }
	serving, ca := spec("Certificate/imds-webhook"), spec("Certificate/imds-ca")
	host := r.service.Name + "." + r.service.Namespace + ".svc"
	if diff := cmp.Diff([]any{host, host + ".cluster.local"}, serving["dnsNames"]); diff != "" {
		t.Errorf("dnsNames (-want +got):\n%s", diff)
	}
	if serving["secretName"] != r.deployment.Spec.Template.Spec.Volumes[0].Secret.SecretName {
		t.Errorf("the certificate goes to the Secret %v", serving["secretName"])
	}
	for name, certificate := range map[string]map[string]any{"serving": serving, "CA": ca} {
		lifetime, before := hours(t, certificate["duration"]), hours(t, certificate["renewBefore"])
		if 3*before != lifetime {
			t.Errorf("the %s certificate lasts %v and is renewed %v before its end, not at two thirds", name, lifetime, before)
		}
	}
	for certificate, issuer := range map[string]string{"Certificate/imds-webhook": "imds-ca", "Certificate/imds-ca": "imds-selfsigned"} {
		reference := spec(certificate)["issuerRef"].(map[string]any)
		if reference["name"] != issuer || r.certManager["Issuer/"+issuer] == nil {
			t.Errorf("%s is issued by %v", certificate, reference)
		}
	}
	if authority := spec("Issuer/imds-ca")["ca"].(map[string]any); authority["secretName"] != ca["secretName"] || ca["isCA"] != true {
		t.Errorf("the issuer signs with %v, the CA is %v", authority, ca)
	}
	if len(r.certManager) != 4 {
		t.Errorf("%d resources of cert-manager.io, want 4", len(r.certManager))
	}
}

func hours(t *testing.T, value any) time.Duration {
	t.Helper()
	duration, err := time.ParseDuration(value.(string))
	if err != nil {
		t.Fatal(err)
	}
	return duration
}

func TestPackageInstallsWhatTheCertManagerOverlayDoes(t *testing.T) {
	tree := loadTree(t)
	of := func(folder string) string {
		content, err := tree.Build(folder)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	if diff := cmp.Diff(of("overlays/cert-manager"), of("kustomize")); diff != "" {
		t.Errorf("(-overlay +package):\n%s", diff)
	}
}

// argument returns the value of the container's argument "flag=value".
func argument(container corev1.Container, flag string) string {
	for _, arg := range container.Args {
		if value, found := strings.CutPrefix(arg, flag+"="); found {
			return value
		}
	}
	return ""
}

func listenPort(t *testing.T, container corev1.Container, flag string) int32 {
	t.Helper()
	_, port, err := net.SplitHostPort(argument(container, flag))
	if err != nil {
		t.Fatalf("%s: %v", flag, err)
	}
	number, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatalf("%s: %v", flag, err)
	}
	return int32(number)
}
