package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	ctx := deadline(t)
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
	file := filepath.Join(pod.folder, "volumes", "kubernetes.io~projected", "token", "file")
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
	if _, err := startPod(t, node, twoSidecars, "third"); err == nil || !strings.Contains(err.Error(), "no container third") {
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

// deadline is one that is never met when all is well.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestSidecarIsKilledAndStartedAgain(t *testing.T) {
	pod, err := startPod(t, newNode(t), twoSidecars, "first")
	if err != nil {
		t.Fatal(err)
	}
	first := pod.sidecars[0]
	if err := first.AwaitLog(deadline(t), "ready\n"); err != nil {
		t.Fatal(err)
	}
	before, said := first.PID(), len(first.Log())
	first.Kill()
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if err := first.AwaitLogAfter(deadline(t), said, "ready\n"); err != nil || first.PID() == before {
		t.Errorf("process %d, before %d, %v", first.PID(), before, err)
	}
	if err := pod.Stop(); err != nil {
		t.Error(err)
	}
}

// What else gets the log gets all of it, and knows when the container has ended.
func TestLogIsCopied(t *testing.T) {
	node := newNode(t)
	reader, writer := io.Pipe()
	node.Log = func(pod *corev1.Pod, container string) (io.WriteCloser, error) {
		if pod.Name != "virt-launcher-web-x" || container != "second" {
			t.Errorf("the log is of %s in %s", container, pod.Name)
		}
		return writer, nil
	}
	copied := make(chan string)
	go func() {
		all, _ := io.ReadAll(reader)
		copied <- string(all)
	}()
	pod, err := startPod(t, node, twoSidecars, "second")
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Stop()
	if got, want := <-copied, pod.sidecars[0].Log(); got != want || got == "" {
		t.Errorf("copied %q, want %q", got, want)
	}
}

func TestCommandInASidecarsContainer(t *testing.T) {
	pod, err := startPod(t, newNode(t), twoSidecars)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Stop()
	second, err := pod.Sidecar("second", "SET=there", "MORE=here")
	if err != nil {
		t.Fatal(err)
	}
	said, err := second.Exec(deadline(t), "/inspect", "everything")
	var seen struct{ Env []string }
	if err := errors.Join(err, json.Unmarshal([]byte(said), &seen)); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if want := []string{"VM=web", "SET=there", "MORE=here"}; !slices.Equal(seen.Env[2:], want) {
		t.Errorf("environment %q, want it to end with %q", seen.Env, want)
	}
	if said, err := second.Exec(deadline(t), "/inspect", "fail"); err == nil || !strings.Contains(err.Error(), "exits with 3") || !strings.Contains(said, "last words") {
		t.Errorf("%q, %v", said, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := second.Exec(short, "/inspect", "ignore"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want it to be given up", err)
	}
}

func TestPodOfTheDeclaredPatches(t *testing.T) {
	folder := t.TempDir()
	for name, text := range map[string]string{
		"10-a.yaml":          `{spec: {initContainers: [{name: a, restartPolicy: Always}], securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: "1"}]}}}`,
		"20-b.yaml":          `{metadata: {name: any}, spec: {initContainers: [{name: a, command: [/a]}, {name: b, image: own}], volumes: [{name: v, emptyDir: {}}]}}`,
		"kustomization.yaml": `kind: Kustomization`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod, err := LauncherPod("given", metav1.ObjectMeta{Name: "virt-launcher-vm"}, "vm", folder)
	if err != nil {
		t.Fatal(err)
	}
	var containers []string
	for _, c := range pod.Spec.InitContainers {
		containers = append(containers, c.Name+" "+c.Image+fmt.Sprint(c.Command))
	}
	if want := []string{"a given[/a]", "b own[]"}; !slices.Equal(containers, want) {
		t.Errorf("%q, want %q", containers, want)
	}
	if c := pod.Spec.SecurityContext; len(c.Sysctls) != 1 || c.Sysctls[0].Value != "1" || *c.FSGroup != 107 {
		t.Errorf("security context %+v", c)
	}
	if pod.Name != "virt-launcher-vm" || pod.Spec.ServiceAccountName != "vm" || len(pod.Spec.Volumes) != 1 {
		t.Errorf("pod %s of %s, volumes %v", pod.Name, pod.Spec.ServiceAccountName, pod.Spec.Volumes)
	}
	if _, err := LauncherPod("", metav1.ObjectMeta{}, "", t.TempDir()); err == nil {
		t.Error("a folder without a patch is taken")
	}
	if err := os.WriteFile(filepath.Join(folder, "30-c.yaml"), []byte("["), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LauncherPod("", metav1.ObjectMeta{}, "", folder); err == nil || !strings.Contains(err.Error(), "30-c.yaml") {
		t.Errorf("%v, want it to name the file", err)
	}
}
