package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/pki"
)

const (
	// readyTime is how long a component may take to be ready; on an idle machine each takes a few seconds.
	readyTime = 3 * time.Minute
	// pollTime is how long to wait before asking a component again whether it is ready.
	pollTime = 50 * time.Millisecond
	tailSize = 25 // lines
)

// component is a running program of the cluster.
type component struct {
	name string
	log  string
	// ended is cancelled when the program has ended, its cause says how.
	ended context.Context
	// kill ends the program. asked says that this was asked for.
	kill  context.CancelFunc
	asked atomic.Bool
}

// launch starts a program inside the sandbox, for as long as the sandbox lives. Its output goes to a log in
// the run folder.
func (c *Cluster) launch(name string, args ...string) (*component, error) {
	p := &component{name: name, log: filepath.Join(c.folder, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	running, kill := context.WithCancel(context.Background())
	p.kill = kill
	command := c.Command(running, c.programs.path(name), args...)
	command.Stdout, command.Stderr = log, log
	// Out of the terminal's session: its Ctrl-C is not for the components.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		kill()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ended, end := context.WithCancelCause(context.Background())
	p.ended = ended
	go func() {
		if err := command.Wait(); err != nil {
			end(fmt.Errorf("ended by itself: %w", err))
		} else {
			end(errors.New("ended by itself, without an error"))
		}
		if !c.stopping.Load() && !p.asked.Load() {
			c.progress.say("%s ended by itself; its log is %s", name, p.log)
		}
	}()
	return p, nil
}

// end ends the program, and returns when it has ended.
func (p *component) end() {
	p.asked.Store(true)
	p.kill()
	<-p.ended.Done()
}

// await returns once check finds the component ready. It fails when the component ends or takes too long,
// and then shows the end of the component's log.
func (c *Cluster) await(ctx context.Context, p *component, check func(context.Context) error) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ended, func() { cancel(context.Cause(p.ended)) })()
	waiting, stop := context.WithTimeoutCause(waiting, readyTime, fmt.Errorf("not ready after %s", readyTime))
	defer stop()
	defer c.progress.during("still waiting for " + p.name)()

	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	for {
		err := check(waiting)
		if err == nil {
			c.progress.say("%s is ready", p.name)
			return nil
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("wait for %s: %w", p.name, context.Cause(ctx))
			}
			return fmt.Errorf("%s: %w (asked whether it is ready: %w); the end of its log %s:\n%s",
				p.name, context.Cause(waiting), err, p.log, tail(p.log))
		}
	}
}

// tail returns the last lines of a log, indented.
func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "\t" + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-tailSize):], "\n\t")
}

// patience is how long anything may take in silence; a longer step says every so often how far it is.
const patience = 10 * time.Second

// progress tells a person what is going on, each line with the time since the beginning.
type progress struct {
	mutex sync.Mutex
	to    io.Writer
	begin time.Time
}

func newProgress(to io.Writer) *progress {
	return &progress{to: to, begin: time.Now()}
}

func (p *progress) say(format string, args ...any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	fmt.Fprintf(p.to, "[%6.1fs] %s\n", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

// during says something every so often until the returned function is called; nothing is said after that returns.
func (p *progress) during(text string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(patience)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.say("%s", text)
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

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
	c.api.end()
	c.client.CloseIdleConnections()
	err := do()
	return errors.Join(err, c.startAPIServer(ctx))
}

// RestartKubelet ends the kubelet as a crash does, and returns when it has been started again. The containers run on.
func (c *Cluster) RestartKubelet(ctx context.Context) error {
	c.kubelet.end()
	if err := c.startKubelet(ctx); err != nil { // the node is still Ready from before
		return err
	}
	return c.await(ctx, c.kubelet, c.answersOK("http://127.0.0.1:10248/healthz"))
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
		"--flex-volume-plugin-dir="+kubeletFolder+"/volume-plugins")
	if err != nil {
		return err
	}
	return c.await(ctx, p, func(ctx context.Context) error {
		_, err := kube.Await(ctx, c.objects, "/api/v1/namespaces/default/serviceaccounts", "default", readyTime,
			func(*corev1.ServiceAccount) string { return "" })
		return err
	})
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

func (c *Cluster) startContainerd(ctx context.Context) error {
	p, err := c.launch("containerd", "--config="+c.file("containerd.toml"))
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.listens(containerdSocket))
}

// kubeletFolder is the kubelet's, and PodsFolder where it has its pods, as the node sees it.
const (
	kubeletFolder = "/run/kubelet"
	PodsFolder    = kubeletFolder + "/pods"
)

// startKubelet returns when the node is Ready.
func (c *Cluster) startKubelet(ctx context.Context) error {
	p, err := c.launch("kubelet",
		"--config="+c.file("kubelet.yaml"),
		"--kubeconfig="+c.file("kubelet.kubeconfig"),
		"--hostname-override="+nodeName,
		"--node-ip="+nodeAddress,
		"--root-dir="+kubeletFolder)
	if err != nil {
		return err
	}
	c.kubelet = p
	return c.await(ctx, p, func(ctx context.Context) error {
		_, err := kube.Await(ctx, c.objects, "/api/v1/nodes", nodeName, readyTime, func(node *corev1.Node) string {
			for _, condition := range node.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					return ""
				}
			}
			return "it is not Ready"
		})
		return err
	})
}

func (c *Cluster) startProxy(ctx context.Context) error {
	p, err := c.launch("kube-proxy", "--config="+c.file("kube-proxy.yaml"))
	if err != nil {
		return err
	}
	return c.await(ctx, p, c.answersOK("http://"+proxyHealth+"/healthz"))
}

// newClients makes the clients that connect inside the sandbox, with the certificate of a user.
func (c *Cluster) newClients(authority *pki.Authority, user pki.Pair) (err error) {
	config := &rest.Config{
		Host:            "https://" + apiServer,
		TLSClientConfig: rest.TLSClientConfig{CAData: authority.Certificate(), CertData: user.Certificate, KeyData: user.Key},
		Dial:            c.DialContext,
	}
	if c.client, err = rest.HTTPClientFor(config); err != nil {
		return err
	}
	c.objects, err = kube.New(config)
	return err
}

// answersOK is a check of a component that answers 200 at the address when it is ready.
func (c *Cluster) answersOK(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		response, err := c.client.Do(request)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s answers %s", address, response.Status)
		}
		return errors.Join(err, response.Body.Close())
	}
}

// listens is a check of a component that listens on a Unix socket when it is ready.
func (c *Cluster) listens(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.sandbox.Path(socket))
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
