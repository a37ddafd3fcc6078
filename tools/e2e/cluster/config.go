package cluster

import (
	"bytes"
	"embed"
	"os"
	"path/filepath"
	"text/template"
)

// Names and addresses inside the sandbox. They are private to its network namespace, so two clusters at once
// may have the same.
const (
	nodeName           = "node1"
	nodeAddress        = "10.99.0.1"
	podPrefix          = "10.88.0.0/24"
	servicePrefix      = "10.96.0.0/16"
	apiServerClusterIP = "10.96.0.1"

	apiServer        = "127.0.0.1:6443"
	etcd             = "127.0.0.1:2379"
	proxyHealth      = "127.0.0.1:10256"
	containerdSocket = "/run/containerd/containerd.sock"
)

//go:embed config
var configFiles embed.FS

var configs = template.Must(template.New("").Option("missingkey=error").ParseFS(configFiles, "config/*"))

// writeConfigs puts the configuration files of the components into the run folder.
func (c *Cluster) writeConfigs() error {
	if err := os.Mkdir(filepath.Join(c.folder, "cni"), 0o755); err != nil {
		return err
	}
	settings := map[string]string{
		"Cgroup":           c.name,
		"ContainerdSocket": containerdSocket,
		"Folder":           c.folder,
		"NodeAddress":      nodeAddress,
		"NodeName":         nodeName,
		"PauseImage":       pauseImage,
		"PodPrefix":        podPrefix,
		"Programs":         c.programs.Folder,
		"ProxyHealth":      proxyHealth,
		"Runc":             c.machine.runc,
	}
	for config, file := range map[string]string{
		"cni.conflist":    "cni/pods.conflist",
		"containerd.toml": "containerd.toml",
		"kube-proxy.yaml": "kube-proxy.yaml",
		"kubelet.yaml":    "kubelet.yaml",
	} {
		var content bytes.Buffer
		if err := configs.ExecuteTemplate(&content, config, settings); err != nil {
			return err
		}
		if err := c.write(file, content.Bytes()); err != nil {
			return err
		}
	}
	return nil
}
