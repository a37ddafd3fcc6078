package main

import (
	"bytes"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// kustomizations are all folders of the repository that kustomize can build, and
// those of components.
func kustomizations(t *testing.T) (roots, components []string) {
	t.Helper()
	for _, folder := range []string{"kustomize", "overlays"} {
		err := fs.WalkDir(os.DirFS(repository), folder, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || path.Base(name) != "kustomization.yaml" {
				return err
			}
			if path.Dir(path.Dir(name)) == "kustomize/components" {
				components = append(components, path.Base(path.Dir(name)))
			} else {
				roots = append(roots, path.Dir(name))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(roots) < 6 || len(components) < 6 {
		t.Fatalf("found only %v and %v", roots, components)
	}
	return roots, components
}

// complaints returns what kustomize writes to stderr and to the log while f runs.
func complaints(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stderr, output := os.Stderr, log.Writer()
	os.Stderr = file
	log.SetOutput(file)
	defer func() { os.Stderr = stderr; log.SetOutput(output) }()
	f()
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestEverythingBuildsWithoutWarning(t *testing.T) {
	roots, components := kustomizations(t)
	tree := loadTree(t)
	for _, root := range roots {
		t.Run(root, func(t *testing.T) {
			warnings := complaints(t, func() {
				if _, err := tree.Build(root); err != nil {
					t.Error(err)
				}
			})
			if warnings != "" {
				t.Error(warnings)
			}
		})
	}
	for _, component := range components {
		t.Run(component, func(t *testing.T) {
			if warnings := complaints(t, func() { buildWith(t, withNeeded(component)...) }); warnings != "" {
				t.Error(warnings)
			}
		})
	}
}

// TestAWarningIsSeen shows that the tests above can fail.
func TestAWarningIsSeen(t *testing.T) {
	tree := loadTree(t)
	if err := tree.Write("old/kustomization.yaml", []byte("resources: [../kustomize/base]\ncommonLabels: {a: b}\n")); err != nil {
		t.Fatal(err)
	}
	warnings := complaints(t, func() {
		if _, err := tree.Build("old"); err != nil {
			t.Error(err)
		}
	})
	if !strings.Contains(warnings, "commonLabels") {
		t.Errorf("kustomize's warning about commonLabels was not seen, but %q", warnings)
	}
}

func TestKustomizationsSayWhatTheyAre(t *testing.T) {
	roots, components := kustomizations(t)
	for _, root := range roots {
		if root == "kustomize/images" {
			wantKind(t, root, types.ComponentVersion, types.ComponentKind)
			continue
		}
		wantKind(t, root, types.KustomizationVersion, types.KustomizationKind)
	}
	for _, component := range components {
		wantKind(t, path.Join("kustomize/components", component), types.ComponentVersion, types.ComponentKind)
	}
}

func wantKind(t *testing.T, folder, version, kind string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, folder, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kustomization types.Kustomization
	if err := yaml.UnmarshalStrict(content, &kustomization); err != nil {
		t.Fatalf("%s: %v", folder, err)
	}
	if kustomization.APIVersion != version || kustomization.Kind != kind {
		t.Errorf("%s is %s %s, want %s %s", folder, kustomization.APIVersion, kustomization.Kind, version, kind)
	}
	if !bytes.HasPrefix(content, []byte("# ")) {
		t.Errorf("%s does not say in a comment who wants it", folder)
	}
}

func TestOverlaysAreShort(t *testing.T) {
	for _, overlay := range render.Overlays {
		if lines := codeLines(t, filepath.Join(repository, overlay, "kustomization.yaml")); lines < 4 || lines > 10 {
			t.Errorf("%s has %d lines, want 4 to 10", overlay, lines)
		}
	}
}

// codeLines counts the lines of a file that are no comment.
func codeLines(t *testing.T, name string) int {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(content)) {
		if !strings.HasPrefix(line, "#") {
			lines++
		}
	}
	return lines
}

// TestKubectlRendersTheSame runs the kustomize that is built into kubectl, which
// is older than ours.
func TestKubectlRendersTheSame(t *testing.T) {
	kubectl := onPath(t, "kubectl", "install kubectl to compare its renders with ours")
	root := copyOfRepository(t)
	tree := loadTree(t)
	writeStandIns(t, root)
	with := filepath.Join(root, "with")
	if err := os.Mkdir(with, 0o755); err != nil {
		t.Fatal(err)
	}
	check := func(folder string, want []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command(kubectl, "kustomize", folder)
		var stdout, stderr bytes.Buffer
		command.Stdout, command.Stderr = &stdout, &stderr
		if err := command.Run(); err != nil || stderr.Len() > 0 {
			t.Fatalf("kubectl kustomize %s: %v: %s", folder, err, &stderr)
		}
		if diff := cmp.Diff(string(want), stdout.String()); diff != "" {
			t.Errorf("%s (-ours +kubectl):\n%s", folder, diff)
		}
	}
	for _, overlay := range render.Overlays {
		want, err := tree.Build(overlay)
		check(filepath.Join(root, overlay), want, err)
		for _, components := range [][]string{{"node-agent", "openshift", "wait-for-imds"}, {"node-agent", "k0s"}, {"node-agent", "microk8s"}} {
			kustomization := "resources: [../" + overlay + "]\ncomponents:\n"
			for _, component := range components {
				kustomization += "- ../kustomize/components/" + component + "\n"
			}
			if err := os.WriteFile(filepath.Join(with, "kustomization.yaml"), []byte(kustomization), 0o644); err != nil {
				t.Fatal(err)
			}
			want, err := tree.BuildWith(overlay, components...)
			check(with, want, err)
		}
	}
}

// writeStandIns puts the files that stand in for what just certs makes into a copy
// of the repository.
func writeStandIns(t *testing.T, root string) {
	t.Helper()
	for name, content := range render.StandIns {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// onPath finds a program, without which the test cannot run.
func onPath(t *testing.T, program, remedy string) string {
	t.Helper()
	found, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not on the PATH: %s", program, remedy)
		}
		t.Skipf("%s is not on the PATH: %s", program, remedy)
	}
	return found
}

func TestMissingCertificateSaysToRunJustCerts(t *testing.T) {
	kubectl := onPath(t, "kubectl", "install kubectl to see its error")
	out, err := exec.Command(kubectl, "kustomize", filepath.Join(copyOfRepository(t), "overlays/manual")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "made-by-just-certs") {
		t.Errorf("kubectl kustomize without the files: %v: %s", err, out)
	}
}
