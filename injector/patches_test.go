package main

import (
	"bytes"
	"net/http"
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

func TestChangedPatchesAreUsedForTheNextPod(t *testing.T) {
	w := startWebhook(t, copyOfPatches(t), immediately)
	pod := podRequest(fixture(t, "masquerade.pod.yaml"))
	replaceFile(t, filepath.Join(w.patches, "30-priority.yaml"),
		[]byte("apiVersion: v1\nkind: Pod\nspec: {priorityClassName: with-imds}\n"))
	if response := w.review("/mutate-pod", pod); !bytes.Contains(response.Patch, []byte(`"with-imds"`)) {
		t.Errorf("patch without the change: %s", response.Patch)
	}
}

func TestWrongPatchesAreShownAndTheLastGoodOnesStay(t *testing.T) {
	w := startWebhook(t, copyOfPatches(t), immediately)
	pod := podRequest(fixture(t, "masquerade.pod.yaml"))
	before := w.review("/mutate-pod", pod)
	path := filepath.Join(w.patches, "20-imds-server.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	replaceFile(t, path, bytes.Replace(good, []byte("livenessProbe:"), []byte("livenesProbe:"), 1))
	for range 2 {
		if after := w.review("/mutate-pod", pod); !bytes.Equal(after.Patch, before.Patch) {
			t.Errorf("another patch: %s", after.Patch)
		}
	}
	if n := w.log.count("changed patches are not used"); n != 1 {
		t.Errorf("reported %d times", n)
	}
	status, body := w.ready()
	if status != http.StatusOK || !strings.Contains(body, "unknown field spec.initContainers[0].livenesProbe") {
		t.Errorf("/readyz: %d %s", status, body)
	}

	replaceFile(t, path, good)
	if status, body := w.ready(); status != http.StatusOK || body != "OK\n" {
		t.Errorf("/readyz after the repair: %d %s", status, body)
	}
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
	pod := fixture(t, "hook-sidecars.pod.yaml")
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
