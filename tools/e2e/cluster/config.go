package cluster

import (
	"bytes"
	"crypto/x509/pkix"
	"embed"
	"encoding/base64"
	"os"
	"path/filepath"
	"text/template"

	"github.com/example/kubevirt-imds/tools/e2e/pki"
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

// writeCredentials makes the certificates, keys and kubeconfigs of all components in the run folder, and the
// client with which this process asks the API.
func (c *Cluster) writeCredentials() error {
	authority, err := pki.NewAuthority("kubevirt-imds-e2e")
	if err != nil {
		return err
	}
	private, public, err := pki.NewServiceAccountKey()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": authority.Certificate(), "service-account.key": private, "service-account.pub": public,
	} {
		if err := c.write(name, content); err != nil {
			return err
		}
	}

	nodeSubject := pkix.Name{CommonName: "system:node:" + nodeName, Organization: []string{"system:nodes"}}
	for name, server := range map[string]struct {
		subject pkix.Name
		hosts   []string
	}{
		"apiserver": {pkix.Name{CommonName: "kube-apiserver"}, []string{
			"127.0.0.1", nodeAddress, apiServerClusterIP, "localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		"kubelet-server": {nodeSubject, []string{nodeName, nodeAddress, "127.0.0.1"}},
		"control-plane":  {pkix.Name{CommonName: "control-plane"}, []string{"127.0.0.1"}},
	} {
		pair, err := authority.Server(server.subject, server.hosts...)
		if err != nil {
			return err
		}
		if err := c.writePair(name, pair); err != nil {
			return err
		}
	}

	for name, subject := range map[string]pkix.Name{
		"admin":                   {CommonName: "admin", Organization: []string{"system:masters"}},
		"kube-controller-manager": {CommonName: "system:kube-controller-manager"},
		"kube-scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":              {CommonName: "system:kube-proxy"},
		"kubelet":                 nodeSubject,
		"apiserver-kubelet":       {CommonName: "apiserver-kubelet", Organization: []string{"system:masters"}},
	} {
		pair, err := authority.Client(subject)
		if err != nil {
			return err
		}
		if err := c.writePair(name, pair); err != nil {
			return err
		}
		if err := c.writeKubeconfig(name, authority, pair); err != nil {
			return err
		}
		if name == "admin" {
			if err := c.newClients(authority, pair); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) writePair(name string, pair pki.Pair) error {
	if err := c.write(name+".crt", pair.Certificate); err != nil {
		return err
	}
	return c.write(name+".key", pair.Key)
}

func (c *Cluster) writeKubeconfig(user string, authority *pki.Authority, pair pki.Pair) error {
	encode := base64.StdEncoding.EncodeToString
	var content bytes.Buffer
	err := configs.ExecuteTemplate(&content, "kubeconfig.yaml", map[string]string{
		"Server":      apiServer,
		"User":        user,
		"Authority":   encode(authority.Certificate()),
		"Certificate": encode(pair.Certificate),
		"Key":         encode(pair.Key),
	})
	if err != nil {
		return err
	}
	return c.write(user+".kubeconfig", content.Bytes())
}

// write puts a file that only root may read into the run folder.
func (c *Cluster) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(c.folder, name), content, 0o600)
}
