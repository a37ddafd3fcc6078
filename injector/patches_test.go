package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// copyOfPatches is the declared folder, to be changed by a test.
func copyOfPatches(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(declaredPatches)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The declared server patch as a component would change it.
func TestServerAsARegularContainer(t *testing.T) {
	dir := copyOfPatches(t)
	path := filepath.Join(dir, "20-imds-server.yaml")
	patch, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	patch = bytes.Replace(patch, []byte("\n  initContainers:"), []byte("\n  containers:"), 1)
	patch = bytes.Replace(patch, []byte("\n    restartPolicy: Always"), nil, 1)
	replaceFile(t, path, patch)

	w := startWebhook(t, dir, immediately)
	pod := fixture(t, "hook-sidecars")
	response := w.review("/mutate-pod", podRequest(pod))
	patched := apply(t, pod, response)
	containers := asList(tree(t, patched)["spec"].(map[string]any)["containers"])
	last := containers[len(containers)-1].(map[string]any)
	if last["name"] != "imds-server" || last["image"] != serverImage {
		t.Errorf("the last regular container is %v", last)
	}
	if again := w.review("/mutate-pod", podRequest(patched)); !again.Allowed || again.Patch != nil {
		t.Errorf("the patched pod is not left alone: %+v", again)
	}
}
