package cluster

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/sandbox"
)

// newFolder is a cluster of which there are files only.
func newFolder(t *testing.T) *Cluster {
	t.Helper()
	return &Cluster{
		name:     "kubevirt-imds-e2e-1",
		folder:   t.TempDir(),
		programs: Programs{Folder: "/cache/programs"},
		machine:  machine{runc: "/usr/sbin/runc"},
		sandbox:  new(sandbox.Sandbox),
	}
}

func TestConfigsNameWhatBelongsToThisCluster(t *testing.T) {
	c := newFolder(t)
	if err := c.writeConfigs(); err != nil {
		t.Fatal(err)
	}
	for file, parts := range map[string][]string{
		"cni/pods.conflist": {podPrefix},
		"containerd.toml":   {containerdSocket, pauseImage, "/usr/sbin/runc", "/cache/programs", c.folder + "/cni"},
		"kube-proxy.yaml":   {c.file("kube-proxy.kubeconfig"), nodeName, podPrefix, proxyHealth},
		"kubelet.yaml":      {"cgroupRoot: /kubevirt-imds-e2e-1\n", "unix://" + containerdSocket, c.file("ca.crt")},
	} {
		content, err := os.ReadFile(c.file(file))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			if !strings.Contains(string(content), part) {
				t.Errorf("%s does not hold %q", file, part)
			}
		}
	}
	conflist, err := os.ReadFile(c.file("cni/pods.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(conflist) {
		t.Errorf("the CNI configuration is not JSON:\n%s", conflist)
	}
}

func TestCredentialsAreForRootOnly(t *testing.T) {
	c := newFolder(t)
	if err := c.writeCredentials(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(c.folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s is %v, want 0600", file, info.Mode())
		}
	}
	kubeconfig, err := os.ReadFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if want := "https://" + apiServer; !strings.Contains(string(kubeconfig), want) {
		t.Errorf("kubeconfig does not name the server %s:\n%s", want, kubeconfig)
	}
}
