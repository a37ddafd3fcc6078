package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/selfsigned"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// The tests of this file run the binaries on what an overlay renders to, as the
// kubelet and the API server would: what one of them calls otherwise than the
// manifests fails here.

// webhook is imds-webhook, running with the arguments of a rendered Deployment.
type webhook struct {
	paths   map[string]string // by the resource that the configuration calls them for
	address string            // of the reviews
	health  string            // of the probes
	host    string
	roots   *x509.CertPool
}

// prepareWebhook makes the command that the Deployment declares, with the files of
// the ConfigMap and a new certificate where its mounts are.
func prepareWebhook(t *testing.T, r rendered, bundle *selfsigned.Bundle) *exec.Cmd {
	t.Helper()
	root := t.TempDir()
	container := r.deployment.Spec.Template.Spec.Containers[0]
	for _, mount := range container.VolumeMounts {
		files := map[string]string{"ca.crt": string(bundle.CA), "tls.crt": string(bundle.Certificate), "tls.key": string(bundle.Key)}
		if mount.MountPath == argument(container, "--patches") {
			files = r.patches.Data
		}
		folder := filepath.Join(root, mount.MountPath)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}

	var variables []string
	pod := &corev1.Pod{ObjectMeta: r.deployment.Spec.Template.ObjectMeta}
	pod.Namespace = r.deployment.Namespace
	for _, variable := range container.Env {
		variables = append(variables, "$("+variable.Name+")", downward(t, pod, variable))
	}
	var args []string
	for _, arg := range container.Args {
		name, value, _ := strings.Cut(strings.NewReplacer(variables...).Replace(arg), "=")
		switch name {
		case "--listen", "--health-listen":
			value = "127.0.0.1:0"
		case "--tls-cert", "--tls-key", "--patches":
			value = filepath.Join(root, value)
		}
		args = append(args, name+"="+value)
	}
	return exec.Command(binary(t, "injector"), args...)
}

// runWebhook runs the webhook of an installation until the test ends.
func runWebhook(t *testing.T, r rendered) *webhook {
	t.Helper()
	host := r.service.Name + "." + r.service.Namespace + ".svc"
	bundle, err := selfsigned.Issue(time.Hour, host)
	if err != nil {
		t.Fatal(err)
	}
	listening := start(t, prepareWebhook(t, r, bundle), `msg=listening webhook=(\S+) health=(\S+)`)
	w := &webhook{paths: map[string]string{}, address: listening[1], health: listening[2], host: host, roots: x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(bundle.CA)
	for _, configured := range r.configuration.Webhooks {
		if !strings.HasPrefix(configured.Name, "repair.") {
			w.paths[configured.Rules[0].Resources[0]] = *configured.ClientConfig.Service.Path
		}
	}
	return w
}

// review asks the webhook about an object, at the path that the configuration has
// for its resource, as the API server does.
func (w *webhook) review(t *testing.T, resource metav1.GroupVersionResource, object []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "1", Resource: resource, Namespace: "tenant", Operation: admissionv1.Create,
			Object: runtime.RawExtension{Raw: object},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, ServerName: w.host}}}
	defer client.CloseIdleConnections()
	response, err := client.Post("https://"+w.address+w.paths[resource.Resource], "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&review); err != nil || review.Response == nil {
		t.Fatalf("answer %s: %v", response.Status, err)
	}
	return review.Response
}

var pods = metav1.GroupVersionResource{Version: "v1", Resource: "pods"}

// inject has the webhook change a VM's pod, and returns the pod as the API server
// would store it.
func (w *webhook) inject(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	before, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	response := w.review(t, pods, before)
	if !response.Allowed || response.Patch == nil {
		t.Fatalf("the pod was not injected: %+v", response)
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := patch.Apply(before)
	if err != nil {
		t.Fatal(err)
	}
	var injected corev1.Pod
	if err := json.Unmarshal(after, &injected); err != nil {
		t.Fatal(err)
	}
	return &injected
}

// launcherPod is the smallest pod that KubeVirt makes for a VM.
func launcherPod(annotations map[string]string) *corev1.Pod {
	controller := true
	if annotations[annotation.Wiring] == "" {
		// As the review of the instance leaves it.
		annotations = maps.Clone(annotations)
		annotations[annotation.Wiring] = annotation.WiringBridge
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "virt-launcher-web-01-",
			Labels:       map[string]string{"kubevirt.io": "virt-launcher"},
			Annotations:  annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "kubevirt.io/v1", Kind: "VirtualMachineInstance", Name: "web-01", UID: "c1f0", Controller: &controller,
			}},
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: "web",
			Containers:         []corev1.Container{{Name: "compute", Image: "virt-launcher"}},
		},
	}
}

func TestWebhookTakesTheRenderedManifests(t *testing.T) {
	for _, overlay := range []string{"cert-manager", "manual"} {
		t.Run(overlay, func(t *testing.T) {
			r := build(t, loadTree(t), "overlays/"+overlay)
			w := runWebhook(t, r)
			container := r.deployment.Spec.Template.Spec.Containers[0]
			for _, probe := range []*corev1.Probe{container.LivenessProbe, container.ReadinessProbe} {
				response, err := http.Get("http://" + w.health + probe.HTTPGet.Path)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if response.StatusCode != http.StatusOK || string(body) != "OK\n" {
					t.Errorf("%s: %s %s", probe.HTTPGet.Path, response.Status, body)
				}
			}

			pod := w.inject(t, launcherPod(map[string]string{annotation.Enabled: "true"}))
			if pod.Annotations[annotation.Version] == "" {
				t.Error("the pod does not say which version injected it")
			}
			delete(pod.Annotations, annotation.Version) // the build's
			if diff := cmp.Diff(map[string]string{
				annotation.Enabled: "true", annotation.Wiring: annotation.WiringBridge,
				annotation.Injected: "true", annotation.WiredBy: annotation.WiredBySidecar, annotation.VMName: "web-01", annotation.VMIUID: "c1f0",
			}, pod.Annotations); diff != "" {
				t.Errorf("annotations (-want +got):\n%s", diff)
			}
			var sidecars []string
			for _, sidecar := range pod.Spec.InitContainers {
				sidecars = append(sidecars, sidecar.Name)
				if preflight := r.deployment.Spec.Template.Spec.InitContainers[0]; sidecar.Image != preflight.Image {
					t.Errorf("the image of %s is %s, the one that was tried is %s", sidecar.Name, sidecar.Image, preflight.Image)
				}
			}
			if want := []string{contract.Init.Name, contract.Server.Name}; !slices.Equal(sidecars, want) {
				t.Errorf("sidecars %v, want %v", sidecars, want)
			}
		})
	}
}

// TestWebhookKnowsTheAnnotations sets every annotation that a user may set, each to
// a value that only its own rule allows.
func TestWebhookKnowsTheAnnotations(t *testing.T) {
	w := runWebhook(t, build(t, loadTree(t), "overlays/cert-manager"))
	pod := w.inject(t, launcherPod(map[string]string{
		annotation.Enabled:                "true",
		annotation.BridgeName:             "k6t-net1",
		annotation.TokenAudiences:         "vault",
		annotation.TokenExpirationSeconds: "900",
		annotation.RequireHeader:          "true",
		annotation.HopLimit:               "1",
	}))
	volume := pod.Spec.Volumes[slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == contract.TokenVolume })]
	var tokens []string
	for _, source := range volume.Projected.Sources {
		token := source.ServiceAccountToken
		tokens = append(tokens, fmt.Sprint(token.Path, " ", token.Audience, " ", *token.ExpirationSeconds))
	}
	if diff := cmp.Diff([]string{contract.TokenFile + "  900", "audiences/0 vault 900"}, tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	for _, name := range []string{annotation.Prefix + "bridge", annotation.Injected, annotation.RedirectPort} {
		object := fmt.Appendf(nil, `{"metadata": {"name": "web-01", "annotations": {%q: "true", %q: "x"}}}`, annotation.Enabled, name)
		vms := metav1.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachines"}
		if response := w.review(t, vms, object); response.Allowed || !strings.Contains(response.Result.Message, name) {
			t.Errorf("%s on a VM: %+v", name, response)
		}
	}
}

// TestPasstReachesBothSidecars follows the port of the redirection from the review
// of a VirtualMachineInstance, by the annotations that KubeVirt copies, to the
// environment of the pod.
func TestPasstReachesBothSidecars(t *testing.T) {
	w := runWebhook(t, build(t, loadTree(t), "overlays/cert-manager"))
	before := fmt.Appendf(nil, `{"metadata": {"name": "web-01", "annotations": {%q: "true"}}, "spec": {
		"domain": {"devices": {"interfaces": [{"name": "default", "passtBinding": {}}]}},
		"networks": [{"name": "default", "pod": {}}]}}`, annotation.Enabled)
	instances := metav1.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachineinstances"}
	response := w.review(t, instances, before)
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatalf("%+v: %v", response, err)
	}
	after, err := patch.Apply(before)
	if err != nil {
		t.Fatal(err)
	}
	var instance metav1.PartialObjectMetadata
	if err := json.Unmarshal(after, &instance); err != nil {
		t.Fatal(err)
	}
	pod := w.inject(t, launcherPod(instance.Annotations))
	for _, sidecar := range pod.Spec.InitContainers {
		i := slices.IndexFunc(sidecar.Env, func(v corev1.EnvVar) bool { return v.Name == "IMDS_REDIRECT_PORT" })
		if i < 0 || downward(t, pod, sidecar.Env[i]) != "60080" || instance.Annotations[annotation.RedirectPort] != "60080" {
			t.Errorf("%s of an instance with %v: environment %+v", sidecar.Name, instance.Annotations, sidecar.Env)
		}
	}
}

// TestServerTakesTheDeclaredEnvironment runs imds-server with what the kubelet
// makes of the injected container's environment, and its probe.
func TestServerTakesTheDeclaredEnvironment(t *testing.T) {
	w := runWebhook(t, build(t, loadTree(t), "overlays/cert-manager"))
	for name, test := range map[string]struct {
		annotations map[string]string
		header      http.Header
		status      int
	}{
		"nothing set":                      {nil, nil, http.StatusOK},
		"everything set":                   {map[string]string{annotation.RequireHeader: "true", annotation.HopLimit: "1"}, http.Header{"Metadata": {"true"}}, http.StatusOK},
		"header required, but not sent":    {map[string]string{annotation.RequireHeader: "true"}, nil, http.StatusForbidden},
		"header not required, but allowed": {map[string]string{annotation.RequireHeader: "false"}, nil, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{annotation.Enabled: "true"}
			for key, value := range test.annotations {
				annotations[key] = value
			}
			pod := w.inject(t, launcherPod(annotations))
			pod.Namespace, pod.Name, pod.Spec.NodeName = "tenant", pod.GenerateName+"x7k2p", "node1"
			sidecar := pod.Spec.InitContainers[slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == contract.Server.Name })]

			address := runServer(t, pod, sidecar)
			request, err := http.NewRequest(http.MethodGet, "http://"+address+"/v1/identity", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = test.header.Clone()
			if request.Header == nil {
				request.Header = http.Header{}
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.status {
				t.Fatalf("status %s, want %d: %s (%v)", response.Status, test.status, body, err)
			}
			if test.status == http.StatusOK {
				for _, want := range []string{`"tenant"`, `"web"`, `"web-01"`, `"virt-launcher-web-01-x7k2p"`, `"c1f0"`, `"node1"`} {
					if !bytes.Contains(body, []byte(want)) {
						t.Errorf("the identity %s has no %s", body, want)
					}
				}
			}
		})
	}
}

// runServer starts imds-server as the container says, but on a loopback address,
// runs its liveness probe and returns the address.
func runServer(t *testing.T, pod *corev1.Pod, container corev1.Container) string {
	t.Helper()
	server := binary(t, "server")
	folder := t.TempDir()
	if mount := container.VolumeMounts[0]; mount.Name != contract.TokenVolume || mount.MountPath != contract.TokenFolder {
		t.Fatalf("mount %+v", mount)
	}
	payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"aud":["a"],"exp":%d}`, time.Now().Add(time.Hour).Unix()))
	token := filepath.Join(folder, contract.TokenFile)
	if err := os.WriteFile(token, []byte("e30."+payload+".c2ln"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The address is this process's own: no other can have taken the port.
	pid := os.Getpid()
	address := fmt.Sprintf("127.%d.%d.%d:8080", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	environment := []string{"IMDS_LISTEN_ADDR=" + address, "IMDS_LISTEN_DEVICE=", "IMDS_TOKEN_PATH=" + token}
	for _, variable := range container.Env {
		environment = append(environment, variable.Name+"="+downward(t, pod, variable))
	}
	if container.Command[0] != "/"+contract.Server.Name {
		t.Fatalf("command %v", container.Command)
	}
	command := exec.Command(server, container.Command[1:]...)
	command.Env = environment
	start(t, command, "msg=listening")

	probe := container.LivenessProbe.Exec.Command
	if probe[0] != "/"+contract.Server.Name {
		t.Fatalf("probe %v", probe)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(container.LivenessProbe.TimeoutSeconds)*time.Second)
	defer cancel()
	command = exec.CommandContext(ctx, server, probe[1:]...)
	command.Env = environment
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", probe, err, out)
	}
	return address
}

// downward is the value that the kubelet gives a variable.
func downward(t *testing.T, pod *corev1.Pod, variable corev1.EnvVar) string {
	t.Helper()
	if variable.ValueFrom == nil {
		return variable.Value
	}
	path := variable.ValueFrom.FieldRef.FieldPath
	if name, found := strings.CutPrefix(path, "metadata.annotations['"); found {
		return pod.Annotations[strings.TrimSuffix(name, "']")]
	}
	value, found := map[string]string{
		"metadata.namespace":      pod.Namespace,
		"metadata.name":           pod.Name,
		"spec.serviceAccountName": pod.Spec.ServiceAccountName,
		"spec.nodeName":           pod.Spec.NodeName,
	}[path]
	if !found {
		t.Fatalf("%s: field path %s is not known", variable.Name, path)
	}
	return value
}

// TestImageHasTheDeclaredCommands compares the pod patches and the pre-flight
// container with the Containerfile.
func TestImageHasTheDeclaredCommands(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(repository, "Containerfile"))
	if err != nil {
		t.Fatal(err)
	}
	server, webhook, found := strings.Cut(string(content), "FROM scratch AS webhook")
	if !found {
		t.Fatal("the Containerfile has no target webhook")
	}
	for _, name := range []string{contract.Init.Name, contract.Server.Name} {
		if !strings.Contains(server, "/"+name+" ") {
			t.Errorf("the image has no /%s", name)
		}
	}
	if !strings.Contains(webhook, `ENTRYPOINT ["/`+contract.Webhook+`"]`) {
		t.Errorf("the webhook's image does not start /%s", contract.Webhook)
	}
	r := build(t, loadTree(t), "overlays/kind")
	preflight := r.deployment.Spec.Template.Spec.InitContainers[0].Command
	if preflight[0] != "/"+contract.Server.Name {
		t.Fatalf("the pre-flight container runs %v", preflight)
	}
	out, err := exec.Command(binary(t, "server"), preflight[1:]...).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), contract.Server.Name) {
		t.Errorf("%v: %v: %s", preflight, err, out)
	}
}
