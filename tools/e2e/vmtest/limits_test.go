package vmtest

import (
	"os"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// The limits that the patches declare are the sidecars', and gone with the pod.
func TestSidecarsAreLimited(t *testing.T) {
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
	node := &kubelet.Node{Images: map[string]string{sidecarImage: t.TempDir()}, Folder: t.TempDir(), Limits: true}
	sandbox, err := node.Sandbox(pod, network)
	if err != nil {
		t.Fatal(err)
	}
	defer sandbox.Stop()
	c, err := sandbox.Sidecar("imds-init")
	if err != nil {
		t.Fatal(err)
	}
	declared := pod.Spec.InitContainers[0].Resources.Limits
	memory, err := c.Group.MemoryLimit()
	if err != nil || int64(memory) != declared.Memory().Value() || memory == 0 {
		t.Errorf("memory %d, %v; declared %s", memory, err, declared.Memory())
	}
	cpu, err := c.Group.CPULimit()
	if err != nil || int64(cpu) != declared.Cpu().MilliValue() || cpu == 0 {
		t.Errorf("CPU %dm, %v; declared %s", cpu, err, declared.Cpu())
	}
	if err := sandbox.Stop(); err != nil {
		t.Error(err)
	}
	for _, folder := range c.Group.Folders() {
		if _, err := os.Stat(folder); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", folder, err)
		}
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const reason = "only root can do this; run the tests of this module as root"
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
