package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
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

// An operator's patch may set annotations, and the tokens go by them.
func TestAnnotationsOfAPatch(t *testing.T) {
	dir := copyOfPatches(t)
	replaceFile(t, filepath.Join(dir, "45-defaults.yaml"), []byte(`apiVersion: v1
kind: Pod
metadata:
  annotations: {imds.kubevirt.io/token-expiration-seconds: "600", imds.kubevirt.io/token-audiences: vault}
`))
	w := startWebhook(t, dir, immediately)
	pod := fixture(t, "masquerade")
	patched := string(apply(t, pod, w.review("/mutate-pod", podRequest(pod))))
	for _, want := range []string{`"audience":"vault"`, `"expirationSeconds":600`} {
		if !strings.Contains(patched, want) {
			t.Errorf("the pod has no %s: %s", want, patched)
		}
	}
	if strings.Contains(patched, `"expirationSeconds":3600`) {
		t.Errorf("a token has another lifetime: %s", patched)
	}
}
