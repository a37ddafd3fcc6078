package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/container"
)

func TestMain(m *testing.M) {
	podnet.Main(m)
}

// image is what the sidecars of these tests run: the program that tells what a
// container sees.
const image = "inspect:test"

func newNode(t *testing.T) *Node {
	t.Helper()
	folder := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(folder, "image")+"/", "../container/testdata/inspect")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	serial := 0
	return &Node{
		Images: map[string]string{image: filepath.Join(folder, "image")},
		Folder: filepath.Join(folder, "pods"),
		Token: func(pod *corev1.Pod, audience string, lifetime time.Duration) (string, error) {
			serial++
			return fmt.Sprintf("%s %q %s %d", pod.Name, audience, lifetime, serial), nil
		},
	}
}

func readPod(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

func startPod(t *testing.T, node *Node, text string, sidecars ...string) (*Pod, error) {
	t.Helper()
	podnet.Require(t)
	network, err := podnet.NewNamespace("pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	return node.Start(readPod(t, text), network, sidecars)
}

const twoSidecars = `
metadata: {name: virt-launcher-web-x, namespace: tenant-a, annotations: {imds.kubevirt.io/vm-name: web}}
spec:
  serviceAccountName: web
  nodeName: node-1
  securityContext:
    {runAsUser: 107, runAsNonRoot: true, fsGroup: 107, sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}
  initContainers:
  - name: first
    image: inspect:test
    restartPolicy: Always
    command: [/inspect]
    args: [wait]
    livenessProbe: {exec: {command: [/inspect, everything]}}
  - name: second
    image: inspect:test
    restartPolicy: Always
    command: [/inspect, everything]
    securityContext: {capabilities: {drop: [ALL]}, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}
    env:
    - {name: SET, value: here}
    - {name: VM, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['imds.kubevirt.io/vm-name']"}}}
    volumeMounts: [{name: token, mountPath: /ro, readOnly: true}]
  volumes:
  - name: token
    projected: {sources: [{serviceAccountToken: {path: file, expirationSeconds: 600, audience: vault}}]}
`

func TestSidecarIsLiveAndEndsBySIGTERM(t *testing.T) {
	node := newNode(t)
	pod, err := startPod(t, node, twoSidecars, "first")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// The first process of a pid namespace does not get a SIGTERM that it has no
	// handler for yet.
	if err := pod.sidecars[0].AwaitLog(ctx, "ready\n"); err != nil {
		t.Fatal(err)
	}
	if live, err := pod.Live(ctx); err != nil || !slices.Equal(live, []string{"first"}) {
		t.Errorf("live are %q, %v", live, err)
	}
	if err := pod.Check(); err != nil {
		t.Error(err)
	}
	if err := pod.Stop(); err != nil {
		t.Error(err)
	}
}

func TestWhatASidecarGets(t *testing.T) {
	node := newNode(t)
	pod, err := startPod(t, node, twoSidecars, "first", "second")
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Stop()
	<-pod.sidecars[1].Done()
	text := []byte(pod.sidecars[1].Log())
	var seen struct {
		UID  int
		Env  []string
		File string
	}
	if err := json.Unmarshal(text, &seen); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want := []string{"PATH=" + runtimePath, "HOSTNAME=virt-launcher-web-x", "SET=here", "VM=web"}
	if seen.UID != 107 || !slices.Equal(seen.Env, want) {
		t.Errorf("%+v, want env %q", seen, want)
	}
	if want := `virt-launcher-web-x "vault" 10m0s 1`; seen.File != want {
		t.Errorf("the token is %q, want %q", seen.File, want)
	}
	if err := pod.Check(); err == nil || !strings.Contains(err.Error(), "container second has ended with exit code 0") {
		t.Errorf("got %v: a sidecar that has ended is to be told of", err)
	}
}

func TestTokensAreRefreshed(t *testing.T) {
	node := newNode(t)
	pod, err := startPod(t, node, twoSidecars, "second")
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Stop()
	file := filepath.Join(pod.folder, "volumes", "token", "file")
	for _, serial := range []string{"1", "2"} {
		if content, err := os.ReadFile(file); err != nil || !strings.HasSuffix(string(content), serial) {
			t.Errorf("%q, %v: want token %s", content, err, serial)
		}
		if err := pod.Refresh(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the token's mode is %v, %v; want 0640 with an fsGroup", info.Mode(), err)
	}
}

func TestPodsThatAreNotSupported(t *testing.T) {
	node := newNode(t)
	for name, c := range map[string]struct{ old, new, want string }{
		"plain init container":   {"    restartPolicy: Always\n", "", "no native sidecar"},
		"startup probe":          {"livenessProbe:", "startupProbe:", "startup probe"},
		"image that is not here": {"image: inspect:test", "image: other", `image "other" is not on the node`},
		"root that must not be":  {"runAsUser: 107", "runAsUser: 0", "runAsNonRoot"},
		"privileged":             {"    args: [wait]\n", "    securityContext: {privileged: true}\n", "privileged"},
		"unknown capability":     {"    args: [wait]\n", "    securityContext: {capabilities: {add: [CAP_CHOWN]}}\n", `"CAP_CHOWN"`},
		"config map as env":      {"    args: [wait]\n", "    env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]\n", "variable A"},
		"whole config map":       {"    args: [wait]\n", "    envFrom: [{configMapRef: {name: c}}]\n", "envFrom"},
		"reference in env":       {"    args: [wait]\n", "    env: [{name: A, value: $(B)}]\n", "references"},
		"unknown field":          {"    args: [wait]\n", "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.magic}}}]\n", "spec.magic"},
		"volume that is missing": {"    args: [wait]\n", "    volumeMounts: [{name: data, mountPath: /data}]\n", "volume data"},
		"sub-path":               {"    args: [wait]\n", "    volumeMounts: [{name: token, mountPath: /data, subPath: a}]\n", "subPath"},
		"sysctl that is none":    {"net.ipv4.ip_unprivileged_port_start", "net.ipv4.nothing", "net.ipv4.nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(twoSidecars, c.old, c.new, 1)
			if text == twoSidecars {
				t.Fatal("the case changes nothing")
			}
			pod, err := startPod(t, node, text, "first")
			if err == nil {
				pod.Stop()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if _, err := startPod(t, node, twoSidecars, "third"); err == nil || !strings.Contains(err.Error(), "no init container third") {
		t.Error(err)
	}
}

func TestFieldsOfTheDownwardAPI(t *testing.T) {
	pod := readPod(t, `
metadata: {name: web-1, namespace: ns, uid: u, labels: {app: web}, annotations: {"imds.kubevirt.io/vm-name": vm}}
spec: {nodeName: node-1, serviceAccountName: sa}
status: {podIP: 10.244.1.5, hostIP: 192.0.2.1}
`)
	for path, want := range map[string]string{
		"metadata.name":           "web-1",
		"metadata.namespace":      "ns",
		"metadata.uid":            "u",
		"metadata.labels['app']":  "web",
		"metadata.labels['none']": "",
		"metadata.annotations['imds.kubevirt.io/vm-name']":   "vm",
		"metadata.annotations['imds.kubevirt.io/hop-limit']": "",
		"spec.nodeName":           "node-1",
		"spec.serviceAccountName": "sa",
		"status.podIP":            "10.244.1.5",
		"status.hostIP":           "192.0.2.1",
	} {
		if got, err := field(pod, path); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"metadata.annotations['a'", "metadata", "spec.containers", ""} {
		if got, err := field(pod, path); err == nil {
			t.Errorf("%q is %q, want an error", path, got)
		}
	}
}

func TestSecurityContexts(t *testing.T) {
	for name, c := range map[string]struct {
		pod, container string
		want           container.Spec
	}{
		"nothing said": {"{}", "{}", container.Spec{Capabilities: container.RuntimeDefault}},
		"the pod's": {"{runAsUser: 107, runAsGroup: 108, fsGroup: 107, supplementalGroups: [7]}", "{}",
			container.Spec{UID: 107, GID: 108, Groups: []uint32{7, 107}, Capabilities: container.RuntimeDefault}},
		"the container's comes first": {"{runAsUser: 107, runAsGroup: 107, runAsNonRoot: true}",
			"{runAsUser: 0, runAsGroup: 0, runAsNonRoot: false, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, " +
				"capabilities: {drop: [ALL], add: [NET_ADMIN]}}",
			container.Spec{Capabilities: 1 << 12, ReadOnlyRoot: true, NoNewPrivileges: true}},
		"one dropped": {"{}", "{capabilities: {drop: [CHOWN]}}", container.Spec{Capabilities: container.RuntimeDefault &^ 1}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := readPod(t, "spec: {securityContext: "+c.pod+", containers: [{name: c, securityContext: "+c.container+"}]}")
			var got container.Spec
			if err := applySecurity(&got, pod, pod.Spec.Containers[0]); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
				t.Errorf("%+v\nwant\n%+v", got, c.want)
			}
		})
	}
}
