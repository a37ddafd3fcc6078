package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// inject has the pod of a fixture injected, and returns it as Kubernetes reads
// it.
func inject(t *testing.T, name string) (*webhook, *corev1.Pod) {
	t.Helper()
	w := startWebhook(t, declaredPatches, immediately)
	pod := fixture(t, name)
	response := w.review("/mutate-pod", podRequest(pod))
	if response.Patch == nil {
		t.Fatalf("not injected: %v", response.Result)
	}
	var patched corev1.Pod
	if err := json.Unmarshal(apply(t, pod, response), &patched); err != nil {
		t.Fatal(err)
	}
	return w, &patched
}

// environment returns the variables of a container with the field that each is
// taken from.
func environment(t *testing.T, pod *corev1.Pod, container string) map[string]string {
	t.Helper()
	for _, c := range pod.Spec.InitContainers {
		if c.Name != container {
			continue
		}
		fields := map[string]string{}
		for _, variable := range c.Env {
			fields[variable.Name] = variable.ValueFrom.FieldRef.FieldPath
		}
		return fields
	}
	t.Fatalf("no container %s", container)
	return nil
}

func TestVMNameIsTheOwnersAndNotALabel(t *testing.T) {
	_, pod := inject(t, "vm-name-longer-than-a-label")
	want := pod.OwnerReferences[0].Name
	if len(want) <= 63 {
		t.Fatalf("the fixture's name %s fits in a label", want)
	}
	if got := pod.Annotations["imds.kubevirt.io/vm-name"]; got != want {
		t.Errorf("annotation %q, want %q", got, want)
	}
	if field := environment(t, pod, "imds-server")["IMDS_VM_NAME"]; field != "metadata.annotations['imds.kubevirt.io/vm-name']" {
		t.Errorf("IMDS_VM_NAME is taken from %s", field)
	}
}

// The API server leaves the namespace to the request. The environment takes it
// from the pod as it was made, not from the object under review.
func TestPodWithoutNamespaceGetsOneAtRunTime(t *testing.T) {
	w, pod := inject(t, "no-namespace")
	if field := environment(t, pod, "imds-server")["IMDS_NAMESPACE"]; field != "metadata.namespace" {
		t.Errorf("IMDS_NAMESPACE is taken from %s", field)
	}
	if line := w.log.wait(t, "pod injected"); !strings.Contains(line, "namespace=tenant-a") {
		t.Errorf("log line without the request's namespace: %s", line)
	}
}

func TestHostileAnnotationCannotForgeALogLine(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	if response := w.review("/mutate-pod", podRequest(fixture(t, "hostile-annotation-value"))); !response.Allowed {
		t.Fatal("refused")
	}
	w.log.wait(t, "pod injected")
	if lines := strings.Count(w.log.String(), "\n"); lines != 3 {
		t.Errorf("%d lines for the start and one pod:\n%s", lines, w.log)
	}
}

func TestOneLogLineForEachInjectionAndRefusalAndNoneForOthers(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, name := range []string{"disabled", "no-annotations", "hotplug-disk", "ephemeral-provisioning", "not-a-virt-launcher"} {
		w.review("/mutate-pod", podRequest(fixture(t, name+"")))
	}
	quiet := w.log.String()
	if lines := strings.Count(quiet, "\n"); lines != 2 {
		t.Errorf("more than the lines of the start:\n%s", quiet)
	}
	w.review("/mutate-pod", podRequest(fixture(t, "masquerade")))
	w.review("/mutate-pod", podRequest(fixture(t, "host-network")))
	lines := strings.Split(strings.TrimPrefix(w.log.String(), quiet), "\n")
	if len(lines) != 3 ||
		!strings.Contains(lines[0], `level=INFO msg="pod injected" namespace=tenant-a remote=127.0.0.1:`) || !strings.Contains(lines[0], ` vm=shop-db pod=virt-launcher-shop-db-`) ||
		!strings.Contains(lines[1], `level=WARN msg=refused namespace=tenant-a remote=127.0.0.1:`) || !strings.Contains(lines[1], ` what="CREATE of pods" name=virt-launcher-shop-db- reason="spec.hostNetwork`) {
		t.Errorf("log of an injection and a refusal:\n%s", strings.Join(lines, "\n"))
	}
}

func TestNeitherSidecarHasMoreThanItNeeds(t *testing.T) {
	_, pod := inject(t, "masquerade")
	for _, container := range pod.Spec.InitContainers {
		if !strings.HasPrefix(container.Name, "imds-") {
			continue
		}
		context := container.SecurityContext
		if *context.AllowPrivilegeEscalation || !*context.ReadOnlyRootFilesystem || context.Privileged != nil ||
			context.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
			len(context.Capabilities.Drop) != 1 || context.Capabilities.Drop[0] != "ALL" {
			t.Errorf("%s: %+v", container.Name, context)
		}
		switch added := context.Capabilities.Add; container.Name {
		case "imds-init":
			if len(added) != 1 || added[0] != "NET_ADMIN" || *context.RunAsUser != 0 || *context.RunAsGroup != 0 || len(container.VolumeMounts) != 0 {
				t.Errorf("imds-init: user %d, capabilities %v, mounts %v", *context.RunAsUser, added, container.VolumeMounts)
			}
		case "imds-server":
			if len(added) != 0 || *context.RunAsUser != 65532 || *context.RunAsGroup != 65532 || !*context.RunAsNonRoot || !container.VolumeMounts[0].ReadOnly {
				t.Errorf("imds-server: user %d, capabilities %v, mounts %v", *context.RunAsUser, added, container.VolumeMounts)
			}
		}
	}
}

func TestHealthIsAliveWhateverReadinessSays(t *testing.T) {
	timing, withdrawn := held(0)
	defer withdrawn()
	w := startWebhook(t, declaredPatches, timing)
	for range 2 {
		response, err := http.Get(w.healthURL + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("/healthz: %s", response.Status)
		}
		w.terminate()
		w.log.wait(t, "draining")
	}
}
