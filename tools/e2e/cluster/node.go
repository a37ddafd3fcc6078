package cluster

import "context"

func (c *Cluster) startContainerd(ctx context.Context) error {
	p, err := c.launch("containerd", "--config="+c.file("containerd.toml"))
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.listens(containerdSocket))
}

// startKubelet returns when the node is Ready.
func (c *Cluster) startKubelet(ctx context.Context) error {
	p, err := c.launch("kubelet",
		"--config="+c.file("kubelet.yaml"),
		"--kubeconfig="+c.file("kubelet.kubeconfig"),
		"--hostname-override="+nodeName,
		"--node-ip="+nodeAddress,
		"--root-dir=/run/kubelet")
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.reports("/api/v1/nodes", nodeName, isReady))
}

func (c *Cluster) startProxy(ctx context.Context) error {
	p, err := c.launch("kube-proxy", "--config="+c.file("kube-proxy.yaml"))
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.answersOK("http://"+proxyHealth+"/healthz"))
}
