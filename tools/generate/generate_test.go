package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// repository is where the tests find the manifests and the binaries' sources.
const repository = "../.."

// generateIn runs the command on the repository at root; it must exit with
// status.
func generateIn(t *testing.T, root string, status int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(append(args, "-root", root), strings.NewReader(""), &out, &errs); got != status {
		t.Fatalf("generate %v: status %d, want %d\n%s%s", args, got, status, &out, &errs)
	}
	return out.String(), errs.String()
}

// copyOfRepository has the manifests and the golden renders, to be changed.
func copyOfRepository(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, folder := range []string{"kustomize", "overlays", goldenFolder} {
		if err := os.CopyFS(filepath.Join(root, folder), os.DirFS(filepath.Join(repository, folder))); err != nil {
			t.Fatal(err)
		}
	}
	// What a user of the working copy has made is no part of it.
	if err := os.RemoveAll(filepath.Join(root, "overlays/manual/tls")); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestCommittedFilesAreUpToDate(t *testing.T) {
	if stdout, stderr := generateIn(t, repository, 0, "-check"); stdout+stderr != "" {
		t.Errorf("-check printed %q", stdout+stderr)
	}
}

func TestCheckShowsWhatIsNotUpToDate(t *testing.T) {
	root := copyOfRepository(t)
	const name = "kustomize/base/mutatingwebhookconfiguration.yaml"
	replaceIn(t, filepath.Join(root, name), "failurePolicy: Fail", "failurePolicy: Ignore")
	if err := os.Remove(filepath.Join(root, goldenFolder, "kind.yaml")); err != nil {
		t.Fatal(err)
	}

	stdout, stderr := generateIn(t, root, 1, "-check")
	for _, want := range []string{"--- " + name, "\n-  failurePolicy: Ignore", "\n+  failurePolicy: Fail", "--- " + goldenFolder + "/kind.yaml", "\n+kind: Namespace\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the difference does not show %q:\n%s", want, stdout)
		}
	}
	if !strings.Contains(stderr, "2 of 11") || !strings.Contains(stderr, "run go run ./tools/generate") {
		t.Errorf("error %q does not count the files and name the remedy", stderr)
	}

	stdout, _ = generateIn(t, root, 0)
	if want := "wrote " + name + "\nwrote " + goldenFolder + "/kind.yaml\n"; stdout != want {
		t.Errorf("generate printed %q, want %q", stdout, want)
	}
	generateIn(t, root, 0, "-check")
}

func TestCheckShowsWhatAHandWrittenManifestChanges(t *testing.T) {
	root := copyOfRepository(t)
	replaceIn(t, filepath.Join(root, "kustomize/base/deployment.yaml"), "replicas: 2", "replicas: 3")
	stdout, _ := generateIn(t, root, 1, "-check")
	for _, want := range []string{"golden/cert-manager.yaml", "golden/manual.yaml", "\n-  replicas: 2", "\n+  replicas: 3"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the difference does not show %q:\n%s", want, stdout)
		}
	}
}

func TestWrongCommandLines(t *testing.T) {
	for _, args := range [][]string{{"-unknown"}, {"function"}, {"krm-function", "more"}} {
		var stdout, stderr bytes.Buffer
		if got := run(args, strings.NewReader(""), &stdout, &stderr); got != 2 || stderr.Len() == 0 {
			t.Errorf("generate %v: status %d, error %q, want 2 and an error", args, got, &stderr)
		}
	}
	if _, stderr := generateIn(t, t.TempDir(), 1); !strings.Contains(stderr, "-root") {
		t.Errorf("outside of the repository: %q does not say what to do", stderr)
	}
}

// replaceIn changes the first occurrence of a text in a file.
func replaceIn(t *testing.T, name, before, after string) {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), before) {
		t.Fatalf("%s has no %q", name, before)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(content), before, after, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
