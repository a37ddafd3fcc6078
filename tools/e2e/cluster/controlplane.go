package cluster

import (
	"context"
	"errors"
	"path/filepath"
)

// startEtcd starts the store of the API. It is in memory, and nothing waits for a disk.
func (c *Cluster) startEtcd(ctx context.Context) error {
	p, err := c.launch("etcd",
		"--data-dir=/run/etcd",
		"--unsafe-no-fsync",
		"--log-level=warn",
		"--listen-client-urls=http://"+etcd,
		"--advertise-client-urls=http://"+etcd,
		"--listen-peer-urls=http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.answersOK("http://"+etcd+"/health"))
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	p, err := c.launch("kube-apiserver",
		"--etcd-servers=http://"+etcd,
		"--secure-port=6443",
		"--advertise-address="+nodeAddress,
		"--service-cluster-ip-range="+servicePrefix,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
		"--tls-cert-file="+c.file("apiserver.crt"),
		"--tls-private-key-file="+c.file("apiserver.key"),
		"--client-ca-file="+c.file("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.file("service-account.pub"),
		"--service-account-signing-key-file="+c.file("service-account.key"),
		"--kubelet-certificate-authority="+c.file("ca.crt"),
		"--kubelet-client-certificate="+c.file("apiserver-kubelet.crt"),
		"--kubelet-client-key="+c.file("apiserver-kubelet.key"),
		// By its name the node could not be found: there is no DNS.
		"--kubelet-preferred-address-types=InternalIP")
	if err != nil {
		return err
	}
	c.api = p
	return c.await(ctx, p, c.answersOK("https://"+apiServer+"/readyz"))
}

// WithoutAPIServer ends the API server as a crash does, does something, and returns when it has been started again.
// All else runs on.
func (c *Cluster) WithoutAPIServer(ctx context.Context, do func() error) error {
	c.api.asked.Store(true)
	c.api.kill()
	<-c.api.ended.Done()
	c.client.CloseIdleConnections()
	err := do()
	return errors.Join(err, c.startAPIServer(ctx))
}

// startControllerManager returns when the first ServiceAccount is there, without which there are no pods.
func (c *Cluster) startControllerManager(ctx context.Context) error {
	p, err := c.launch("kube-controller-manager",
		"--kubeconfig="+c.file("kube-controller-manager.kubeconfig"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--tls-cert-file="+c.file("control-plane.crt"),
		"--tls-private-key-file="+c.file("control-plane.key"),
		"--use-service-account-credentials=true",
		// Each controller first asks for a token of its own; at the default rate that takes six seconds.
		"--kube-api-qps=1000",
		"--kube-api-burst=1000",
		"--service-account-private-key-file="+c.file("service-account.key"),
		"--root-ca-file="+c.file("ca.crt"),
		"--flex-volume-plugin-dir=/run/kubelet/volume-plugins")
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.reports("/api/v1/namespaces/default/serviceaccounts", "default", exists))
}

func (c *Cluster) startScheduler(ctx context.Context) error {
	p, err := c.launch("kube-scheduler",
		"--kubeconfig="+c.file("kube-scheduler.kubeconfig"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--tls-cert-file="+c.file("control-plane.crt"),
		"--tls-private-key-file="+c.file("control-plane.key"))
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.answersOK("https://127.0.0.1:10259/readyz"))
}

// file is the path of a file in the run folder.
func (c *Cluster) file(name string) string { return filepath.Join(c.folder, name) }
