package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// checkInjection checks everything that holds for each injected pod, whatever
// the pod is.
func checkInjection(t *testing.T, w *webhook, pod []byte, response *admissionv1.AdmissionResponse) {
	t.Helper()
	patched := apply(t, pod, response)
	checkSame(t, "the patched pod", withoutOurs(tree(t, patched)), withoutOurs(expectedPod(t, w.patches, pod, patched)))
	checkOperations(t, response.Patch)
	checkKubernetesReads(t, pod, patched)

	if again := w.review("/mutate-pod", podRequest(patched)); !again.Allowed || again.Patch != nil {
		t.Errorf("the patched pod is not left alone: allowed %v, patch %s", again.Allowed, again.Patch)
	}
}

// withoutOurs removes what the verdict beside a fixture shows: our annotations,
// and the resources of the sidecars.
func withoutOurs(pod jsontree.Object) jsontree.Object {
	for _, name := range annotation.All() {
		delete(annotationsOf(pod), name)
	}
	for _, container := range asList(jsontree.Lookup[any](pod, "spec", "initContainers")) {
		if container := container.(jsontree.Object); strings.HasPrefix(container["name"].(string), "imds-") {
			delete(container, "resources")
		}
	}
	return pod
}

// expectedPod is the pod with the patches in it, put together without strategic
// merge: the patches only append, and say so here once more.
func expectedPod(t *testing.T, patches string, pod, patched []byte) jsontree.Object {
	t.Helper()
	expected := tree(t, pod)
	spec := jsontree.Lookup[jsontree.Object](expected, "spec")
	annotations := annotationsOf(tree(t, patched))

	initPatch := tree(t, readObject(t, patches+"/10-imds-init.yaml"))
	serverPatch := tree(t, readObject(t, patches+"/20-imds-server.yaml"))
	initContainers := asList(spec["initContainers"])
	for _, patch := range []jsontree.Object{initPatch, serverPatch} {
		for _, container := range asList(jsontree.Lookup[any](patch, "spec", "initContainers")) {
			container.(jsontree.Object)["image"] = serverImage
			initContainers = append(initContainers, container)
		}
	}
	spec["initContainers"] = initContainers

	volume := asList(jsontree.Lookup[any](serverPatch, "spec", "volumes"))[0].(jsontree.Object)
	projected := jsontree.Lookup[jsontree.Object](volume, "projected")
	token := jsontree.Lookup[jsontree.Object](asList(projected["sources"])[0].(jsontree.Object), "serviceAccountToken")
	if seconds, ok := annotations[annotation.TokenExpirationSeconds].(string); ok {
		token["expirationSeconds"] = json.Number(seconds)
	}
	if audiences, ok := annotations[annotation.TokenAudiences].(string); ok {
		for i, audience := range strings.Split(audiences, ",") {
			projected["sources"] = append(asList(projected["sources"]), jsontree.Object{
				"serviceAccountToken": jsontree.Object{
					"path":              "audiences/" + strconv.Itoa(i),
					"audience":          strings.TrimSpace(audience),
					"expirationSeconds": token["expirationSeconds"],
				}})
		}
	}
	spec["volumes"] = append(asList(spec["volumes"]), volume)

	if annotations[annotation.RedirectPort] != nil {
		return expected // its first port is KubeVirt's
	}
	if spec["securityContext"] == nil {
		spec["securityContext"] = jsontree.Object{}
	}
	securityContext := jsontree.Lookup[jsontree.Object](spec, "securityContext")
	const portStart = "net.ipv4.ip_unprivileged_port_start"
	sysctls := asList(securityContext["sysctls"])
	i := slices.IndexFunc(sysctls, func(sysctl any) bool { return sysctl.(jsontree.Object)["name"] == portStart })
	if i < 0 {
		sysctls = append(sysctls, jsontree.Object{"name": portStart, "value": "0"})
	} else {
		sysctls[i].(jsontree.Object)["value"] = "0"
	}
	securityContext["sysctls"] = sysctls

	return expected
}

func annotationsOf(pod jsontree.Object) jsontree.Object {
	return jsontree.Lookup[jsontree.Object](pod, "metadata", "annotations")
}

func asList(value any) []any {
	list, _ := value.([]any)
	return list
}

// What a patch may touch: appended init containers, volumes and sysctls, or
// such a list where there was none, and the webhook's own annotations.
var allowedOperation = regexp.MustCompile(`^(` + strings.Join([]string{
	`add /spec/(initContainers|volumes)(/-)?`,
	`replace /spec/(initContainers|volumes|securityContext)`, // of null
	`add /spec/securityContext(/sysctls(/-)?)?`,
	`replace /spec/securityContext/sysctls/\d+/value`,
	`(add|replace|remove) /metadata/annotations/imds\.kubevirt\.io~1[a-z-]+`,
}, "|") + `)$`)

func checkOperations(t *testing.T, patch []byte) {
	t.Helper()
	var operations []struct {
		Op    string          `json:"op"`
		Path  string          `json:"path"`
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(patch, &operations); err != nil {
		t.Fatal(err)
	}
	containers, volumes := 0, 0
	for _, operation := range operations {
		if !allowedOperation.MatchString(operation.Op + " " + operation.Path) {
			t.Errorf("operation %s %s touches what it must not", operation.Op, operation.Path)
		}
		added := 1
		if strings.HasPrefix(string(operation.Value), "[") {
			var list []any
			if err := json.Unmarshal(operation.Value, &list); err != nil {
				t.Fatal(err)
			}
			added = len(list)
		}
		switch {
		case strings.HasPrefix(operation.Path, "/spec/initContainers"):
			containers += added
		case strings.HasPrefix(operation.Path, "/spec/volumes"):
			volumes += added
		}
	}
	if containers != 2 || volumes != 1 {
		t.Errorf("the patch adds %d init containers and %d volumes, want 2 and 1", containers, volumes)
	}
}

// checkKubernetesReads reads the patched pod as Kubernetes does.
func checkKubernetesReads(t *testing.T, before, after []byte) {
	t.Helper()
	var was, is corev1.Pod
	if err := json.Unmarshal(before, &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(after, &is); err != nil {
		t.Fatal(err)
	}
	n := len(was.Spec.InitContainers)
	if len(is.Spec.InitContainers) != n+2 {
		t.Fatalf("%d init containers became %d", n, len(is.Spec.InitContainers))
	}
	for i, name := range []string{"imds-init", "imds-server"} {
		container := is.Spec.InitContainers[n+i]
		if container.Name != name || container.Image != serverImage {
			t.Errorf("init container %d is %s with image %s", n+i, container.Name, container.Image)
		}
		if container.RestartPolicy == nil || *container.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("%s is no native sidecar: restartPolicy %v", name, container.RestartPolicy)
		}
		if container.StartupProbe != nil || container.ReadinessProbe != nil {
			t.Errorf("%s has a probe that holds up the VM", name)
		}
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := container.Resources.Requests[resource], container.Resources.Limits[resource]
			if request.IsZero() || request.Cmp(limit) > 0 {
				t.Errorf("%s: %s request %s, limit %s", name, resource, &request, &limit)
			}
		}
	}
	if isGuaranteed(&was) && !isGuaranteed(&is) {
		t.Error("a Guaranteed pod is none any more")
	}
}

// isGuaranteed is the rule of the kubelet's QoS classes.
func isGuaranteed(pod *corev1.Pod) bool {
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := container.Resources.Requests[resource], container.Resources.Limits[resource]
			if limit.IsZero() || request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return true
}

func TestDedicatedCPUsFixtureIsGuaranteed(t *testing.T) {
	var pod corev1.Pod
	if err := json.Unmarshal(fixture(t, "dedicated-cpus"), &pod); err != nil {
		t.Fatal(err)
	}
	if !isGuaranteed(&pod) {
		t.Error("the fixture does not test what it says")
	}
}
