package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/demo/internal/issuer"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// runDemo in the environment makes the test binary the demo.
const runDemo = "TEST_RUNS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(runDemo) != "" {
		main()
	}
	os.Exit(m.Run())
}

// demoCommand has settings of the machine that could hinder the programs in the
// images, which run as other users and find no dynamic linker.
func demoCommand(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, self}, args...)...)
	cmd.Env = append(os.Environ(), runDemo+"=1", "GOFLAGS="+os.Getenv("GOFLAGS")+" -buildmode=pie")
	return cmd
}

// requireDemo skips where the machine refuses what the demo needs, and fails
// there if CI=true.
func requireDemo(t *testing.T, err error, said string) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitUnavailable {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(said)
	}
	t.Skip(said)
}

// runs is how often the demo is run for its figures. The best one counts:
// whatever else the machine has to do only adds to them.
const runs = 3

func TestDemoInBothBindings(t *testing.T) {
	firstAnswers := map[string][]float64{}
	for range runs {
		var out, progress bytes.Buffer
		cmd := demoCommand("-json")
		cmd.Stdout, cmd.Stderr = &out, &progress
		err := cmd.Run()
		requireDemo(t, err, progress.String())
		if err != nil {
			t.Fatalf("%v\n%s", err, progress.String())
		}
		var d document
		decoder := json.NewDecoder(&out)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&d); err != nil {
			t.Fatal(err)
		}
		if rest, _ := io.ReadAll(io.MultiReader(decoder.Buffered(), &out)); len(bytes.TrimSpace(rest)) > 0 {
			t.Errorf("behind the JSON document: %q", rest)
		}
		checkDocument(t, d)
		checkNoToken(t, progress.String())
		for _, p := range d.Pods {
			firstAnswers[p.Binding] = append(firstAnswers[p.Binding], p.FirstAnswer.Milliseconds)
		}
	}
	for binding, figures := range firstAnswers {
		t.Logf("%s binding, first answer after bridge and tap: %v ms", binding, figures)
		if best := slices.Min(figures); best >= 50 {
			t.Errorf("%s binding: first answer after %v ms, want less than 50", binding, best)
		}
	}
}

func checkDocument(t *testing.T, d document) {
	t.Helper()
	if !d.OK || d.Error != "" || len(d.Pods) != len(bindings) {
		t.Fatalf("ok %t, error %q, %d pods", d.OK, d.Error, len(d.Pods))
	}
	if want := map[bool]string{true: "root", false: "user namespace"}[os.Geteuid() == 0]; d.RunsAs != want {
		t.Errorf("runs as %s, want %s", d.RunsAs, want)
	}
	for i, p := range d.Pods {
		if p.Binding != string(bindings[i]) {
			t.Errorf("pod %d is in %s binding, want %s", i, p.Binding, bindings[i])
		}
		checkPatch(t, p)
		checkSidecars(t, p)
		checkGuest(t, p)
		checkNeighbour(t, p)
	}
}

func checkPatch(t *testing.T, p *podDocument) {
	t.Helper()
	var got []string
	for _, c := range p.Patch {
		if strings.HasSuffix(c.Path, "~1version") {
			c.Value = "" // the build's
		}
		got = append(got, strings.TrimSpace(c.Operation+" "+c.Path+" "+c.Value))
	}
	vm, uid := "web", "7c1f8a52-3b57-4a0e-9d0c-5b8a5f4e2c11"
	if p.Binding == "bridge" {
		vm, uid = "db", "c3d0f6e4-91b2-4d7e-8a3f-2e6b7d915a08"
	}
	want := []string{
		"add /metadata/annotations/imds.kubevirt.io~1injected true",
		"add /metadata/annotations/imds.kubevirt.io~1version",
		"add /metadata/annotations/imds.kubevirt.io~1vm-name " + vm,
		"add /metadata/annotations/imds.kubevirt.io~1vmi-uid " + uid,
		"add /metadata/annotations/imds.kubevirt.io~1wired-by sidecar",
		"add /spec/initContainers/- imds-init",
		"add /spec/initContainers/- imds-server",
		"add /spec/securityContext/sysctls " + declaredSysctls(t),
		"add /spec/volumes/- imds-token",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s binding: the patch is\n%s\nwant\n%s", p.Binding, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// declaredSysctls are those of the declared patches.
func declaredSysctls(t *testing.T) string {
	t.Helper()
	pod, err := kubelet.LauncherPod(serverImage, metav1.ObjectMeta{}, "", "../../kustomize/sidecar")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		all = append(all, s.Name+"="+s.Value)
	}
	return strings.Join(all, ", ")
}

func checkSidecars(t *testing.T, p *podDocument) {
	t.Helper()
	want := []sidecarDocument{
		{Name: "imds-init", UID: 0, GID: 0, BoundingSet: "NET_ADMIN", Effective: "NET_ADMIN", NoNewPrivileges: true},
		{Name: "imds-server", UID: 65532, GID: 65532, BoundingSet: "none", Effective: "none", NoNewPrivileges: true},
	}
	for i, got := range p.Sidecars {
		got.Command, got.Groups = nil, nil
		if i >= len(want) || got.String() != want[i].String() || got.GID != want[i].GID || got.Effective != want[i].Effective {
			t.Errorf("%s binding: sidecar %d is %+v", p.Binding, i, got)
		}
	}
	if len(p.Sidecars) != len(want) {
		t.Errorf("%s binding: %d sidecars, want %d", p.Binding, len(p.Sidecars), len(want))
	}
}

func checkGuest(t *testing.T, p *podDocument) {
	t.Helper()
	vm := map[string]string{"masquerade": "web", "bridge": "db"}[p.Binding]
	if p.Health != "OK" {
		t.Errorf("%s binding: healthz is %q", p.Binding, p.Health)
	}
	for key, want := range map[string]string{
		"namespace": "tenant-a", "vmName": vm, "serviceAccountName": vm, "podName": p.Name, "nodeName": nodeName,
	} {
		if got := p.Identity[key]; got != want {
			t.Errorf("%s binding: identity: %s is %q, want %q", p.Binding, key, got, want)
		}
	}
	for name, token := range map[string]*tokenDocument{"token": p.Token, "rotated token": p.Rotated} {
		if token == nil || !token.Verified || token.Claims.Subject != "system:serviceaccount:tenant-a:"+vm ||
			token.Claims.Kubernetes.Pod.Name != p.Name || token.Claims.Issuer != issuer.URL {
			t.Errorf("%s binding: %s: %+v", p.Binding, name, token)
		}
	}
	if p.Token.Claims.ID == p.Rotated.Claims.ID {
		t.Errorf("%s binding: the token was not rotated", p.Binding)
	}
}

func checkNeighbour(t *testing.T, p *podDocument) {
	t.Helper()
	var tried []string
	for _, a := range p.Neighbour {
		tried = append(tried, a.Way)
		if !a.Refused || a.Outcome == podnet.Answered {
			t.Errorf("%s binding: the neighbour was answered by %s: %s", p.Binding, a.Way, a.Detail)
		}
	}
	want := []string{"ARP", "the veth's MAC", "the bridge port's MAC", "the bridge's MAC",
		map[string]string{"masquerade": "the pod's MAC", "bridge": "the guest's MAC"}[p.Binding]}
	if !slices.Equal(tried, want) {
		t.Errorf("%s binding: the neighbour tried by %q, want %q", p.Binding, tried, want)
	}
	if p.Impostor == nil || p.Impostor.Requests != 0 || p.Impostor.TrueAnswers != impostorRequests {
		t.Errorf("%s binding: impostor: %+v", p.Binding, p.Impostor)
	}
	if p.UplinkFrames == nil || *p.UplinkFrames != 0 {
		t.Errorf("%s binding: frames about the metadata service left the pod by its uplink", p.Binding)
	}
}

// checkNoToken looks for a payload of a JWT, which a human could copy.
func checkNoToken(t *testing.T, text string) {
	t.Helper()
	if found := regexp.MustCompile(`eyJ[\w-]+\.eyJ`).FindString(text); found != "" {
		t.Errorf("a token is shown: %s...", found)
	}
}

func TestDemoOfOneBindingLeavesNothingBehind(t *testing.T) {
	temporary := t.TempDir()
	cmd := demoCommand("-binding", "bridge")
	cmd.Env = append(cmd.Env, "TMPDIR="+temporary)
	out, err := cmd.CombinedOutput()
	requireDemo(t, err, string(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if !strings.Contains(text, "bridge binding") || strings.Contains(text, "masquerade binding") {
		t.Errorf("-binding bridge shows:\n%s", text)
	}
	for _, want := range []string{"guest$ curl -s http://169.254.169.254/v1/token", "verified with the issuer's public key",
		"system:serviceaccount:tenant-a:db", "first answer"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	checkNoToken(t, text)
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestKeptDemoRunsUntilInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := demoCommand("-binding", "masquerade", "-keep")
	temporary := t.TempDir()
	cmd.Env = append(cmd.Env, "TMPDIR="+temporary)
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		writer.Close()
		ended <- err
	}()
	shown := readUntil(reader, "logs ")
	go io.Copy(io.Discard, reader)
	command := regexp.MustCompile(`nsenter .*/v1/identity`).FindString(shown)
	if command != "" {
		// As root sudo is not needed, and may be missing.
		out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
		if err != nil && commandsExist("nsenter", "curl") {
			t.Errorf("%s: %v\n%s", command, err, out)
		} else if err == nil && !strings.Contains(string(out), `"vmName":"web"`) {
			t.Errorf("%s prints %s", command, out)
		}
	}
	cmd.Process.Signal(syscall.SIGINT)
	err := <-ended
	requireDemo(t, err, shown)
	if err != nil {
		t.Fatalf("after Ctrl-C: %v\n%s", err, shown)
	}
	if command == "" {
		t.Errorf("no command to look around in:\n%s", shown)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// readUntil reads up to the line that begins with a word, or to the end.
func readUntil(r io.Reader, word string) string {
	var text strings.Builder
	line := make([]byte, 0, 256)
	one := make([]byte, 1)
	for {
		if _, err := r.Read(one); err != nil {
			return text.String()
		}
		line = append(line, one[0])
		text.WriteByte(one[0])
		if one[0] != '\n' {
			continue
		}
		if strings.HasPrefix(strings.TrimSpace(string(line)), word) {
			return text.String()
		}
		line = line[:0]
	}
}

func commandsExist(names ...string) bool {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return false
		}
	}
	return true
}

func TestReachedMetadataServiceIsAFailure(t *testing.T) {
	refused := attempt{Way: "ARP", Outcome: podnet.NoAnswer, Refused: true}
	reached := attempt{Way: "the pod's MAC", Outcome: podnet.Answered}
	if err := answered([]attempt{refused, refused}); err != nil {
		t.Error(err)
	}
	if err := answered([]attempt{refused, reached}); err == nil || !strings.Contains(err.Error(), "by the pod's MAC") {
		t.Errorf("got %v, want it to name the way", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // of the error
	}{
		{nil, ""},
		{[]string{"-binding", "bridge", "-keep", "-json"}, ""},
		{[]string{"--binding=masquerade"}, ""},
		{[]string{"-binding", "passt"}, "use one of masquerade bridge"},
		{[]string{"bridge"}, `argument "bridge" is not expected`},
		{[]string{"-color"}, "not defined"},
	} {
		o, err := parseOptions(c.args)
		switch {
		case c.want == "" && (err != nil || len(o.bindings) == 0):
			t.Errorf("%v: %+v, %v", c.args, o, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
	if _, err := parseOptions([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestWrongUsageIsToldApart(t *testing.T) {
	var out, errors strings.Builder
	code := run(t.Context(), []string{"-binding", "passt"}, func(string) string { return "" }, &out, &errors)
	if code != exitUsage || out.Len() > 0 || !strings.Contains(errors.String(), "-help") {
		t.Errorf("code %d, %q, %q", code, out.String(), errors.String())
	}
}
