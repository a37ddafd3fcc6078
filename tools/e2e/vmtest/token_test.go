package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

func TestTokenIsSwappedAsAWhole(t *testing.T) {
	requireRoot(t)
	network, err := podnet.NewNamespace("pod")
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	pod, err := kubelet.LauncherPod(sidecarImage, metav1.ObjectMeta{Name: "virt-launcher-vm"}, "vm", "../../../kustomize/sidecar")
	if err != nil {
		t.Fatal(err)
	}
	addAudiences(pod, []string{"vault"})
	v, folder := new(tokens), t.TempDir()
	node := &kubelet.Node{Images: map[string]string{sidecarImage: t.TempDir()}, Folder: folder, Token: v.issue}
	sandbox, err := node.Sandbox(pod, network)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Sidecar("imds-server"); err != nil {
		t.Fatal(err)
	}
	files := filepath.Join(folder, "*", "volumes", "*", "imds-token")
	var seen []string
	for range 3 {
		if content := read(t, filepath.Join(files, "token")); content != v.current {
			t.Fatal("the file does not hold the token that was issued")
		}
		other := read(t, filepath.Join(files, "audiences", "0"))
		if other == v.current || strings.Count(other, ".") != 2 {
			t.Fatal("the other audience's file holds no token of its own")
		}
		seen = append(seen, v.current, other)
		if err := sandbox.Refresh(); err != nil {
			t.Fatal(err)
		}
	}
	for i, token := range seen {
		for _, earlier := range seen[:i] {
			if token == earlier {
				t.Error("a token was issued twice")
			}
		}
	}
	versions, err := filepath.Glob(filepath.Join(files, "..2*"))
	if err != nil || len(versions) != 1 {
		t.Errorf("%d versions are left, want one", len(versions))
	}
}

// read reads the only file that matches a pattern.
func read(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	content, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
