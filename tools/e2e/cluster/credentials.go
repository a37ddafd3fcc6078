package cluster

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/base64"
	"os"
	"path/filepath"

	"github.com/example/kubevirt-imds/tools/e2e/pki"
)

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
			if c.client, err = c.newClient(authority, pair); err != nil {
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
