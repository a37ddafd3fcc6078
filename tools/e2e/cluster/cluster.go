// Package cluster runs a real Kubernetes of one node on this machine, without Docker: etcd, the control
// plane, kubelet, kube-proxy and containerd, built from Go modules, inside a sandbox out of which nothing
// leaks. It is up in seconds and leaves no trace when it stops.
//
// What it lacks: DNS, enforced NetworkPolicies, storage classes, and a way out of the node for pods. Images
// come from LoadImage only; an imagePullPolicy of Never or IfNotPresent finds them.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/sandbox"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Options are what a cluster is started with.
type Options struct {
	// Programs is what Build returned.
	Programs Programs
	// Progress gets a line whenever a component is ready, and one every ten seconds while nothing happens.
	Progress io.Writer
}

// Cluster is a running Kubernetes.
type Cluster struct {
	programs Programs
	machine  machine
	progress *progress
	name     string // of the run folder and of the cgroups
	folder   string
	sandbox  *sandbox.Sandbox
	network  *podnet.Namespace // the node's
	client   *http.Client
	objects  *kube.Client // of the API
	api      *component   // the API server
	kubelet  *component
	stopping atomic.Bool
}

// Start starts a cluster and returns when its API answers and its node is Ready. It needs root and two
// programs that it names if they are missing. The context is for the start only: the cluster then lives until
// Stop, or until this process ends, however it ends.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	found, err := checkMachine()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", cacheName+"-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		programs: options.Programs,
		machine:  found,
		progress: newProgress(options.Progress),
		name:     filepath.Base(folder),
		folder:   folder,
	}
	c.sandbox, err = sandbox.Start(sandbox.Config{Name: c.name, Address: nodeAddress, Services: servicePrefix})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if c.network, err = c.sandbox.Network(); err != nil {
		return nil, errors.Join(err, c.sandbox.Stop(), os.RemoveAll(folder))
	}
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("%w\nall logs are kept in %s", errors.Join(err, c.Stop()), folder)
	}
	return c, nil
}

// Up builds what a cluster needs, and starts one.
func Up(ctx context.Context, messages io.Writer) (*Cluster, error) {
	// Before a build that takes minutes.
	if _, err := checkMachine(); err != nil {
		return nil, err
	}
	programs, err := Build(ctx, messages)
	if err != nil {
		return nil, err
	}
	return Start(ctx, Options{Programs: programs, Progress: messages})
}

// Down stops the cluster. Its run folder, with the logs, stays if something has failed.
func (c *Cluster) Down(failed bool) error {
	err := c.Stop()
	if failed || err != nil {
		c.progress.say("the logs of the cluster are kept in %s", c.folder)
		return err
	}
	return os.RemoveAll(c.folder)
}

// start brings up the components, side by side as far as one does not need the other.
func (c *Cluster) start(ctx context.Context) error {
	if err := c.writeCredentials(); err != nil {
		return err
	}
	if err := c.writeConfigs(); err != nil {
		return err
	}
	base, baseCtx := errgroup.WithContext(ctx)
	base.Go(inOrder(baseCtx, c.startEtcd, c.startAPIServer))
	base.Go(inOrder(baseCtx, c.startContainerd, func(ctx context.Context) error {
		return c.LoadImage(ctx, Image{Name: pauseImage, Entrypoint: "/pause", Root: os.DirFS(c.programs.path(pauseRoot))})
	}))
	if err := base.Wait(); err != nil {
		return err
	}
	rest, restCtx := errgroup.WithContext(ctx)
	rest.Go(inOrder(restCtx, c.startControllerManager))
	rest.Go(inOrder(restCtx, c.startScheduler))
	rest.Go(inOrder(restCtx, c.startKubelet))
	rest.Go(inOrder(restCtx, c.startProxy))
	return rest.Wait()
}

// inOrder is one function that does the steps one after another until one fails.
func inOrder(ctx context.Context, steps ...func(context.Context) error) func() error {
	return func() error {
		for _, step := range steps {
			if err := step(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// Folder is the run folder: logs, configuration and credentials of this cluster. Who started the cluster
// removes it; a failed Start keeps it and names it.
func (c *Cluster) Folder() string { return c.folder }

// Kubeconfig is the path of the cluster administrator's kubeconfig. The server in it can be reached from
// inside only.
func (c *Cluster) Kubeconfig() string { return c.file("admin.kubeconfig") }

// DialContext connects from the node to an IP address and port, such as those of a pod or a Service.
func (c *Cluster) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return c.network.Dial(ctx, network, address)
}

// Command is exec.CommandContext for a program inside the cluster's namespaces, on its node, with kubectl,
// ctr and the others in its PATH and KUBECONFIG set. See sandbox.Sandbox.Command for signals.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	command := c.sandbox.Command(ctx, name, args...)
	command.Env = append(os.Environ(), c.environment()...)
	return command
}

// environment is what programs in the cluster have besides the environment of this process.
func (c *Cluster) environment() []string {
	return []string{
		"PATH=" + strings.Join([]string{c.programs.Folder, os.Getenv("PATH"), systemFolders}, ":"),
		"KUBECONFIG=" + c.Kubeconfig(),
		// kubectl reads no settings of the user's and leaves no cache in the user's home folder.
		"KUBERC=off",
		"KUBECACHEDIR=" + c.file("kubectl-cache"),
		"CONTAINERD_ADDRESS=" + containerdSocket,
		"CONTAINERD_NAMESPACE=k8s.io",
	}
}

// ShellCommand is what a person types, as root, to get a shell in which kubectl and ctr reach the cluster.
func (c *Cluster) ShellCommand() string {
	return fmt.Sprintf("nsenter --target %d --mount --net --pid env %s sh", c.sandbox.Pid(), strings.Join(c.environment(), " "))
}

// Stop ends the cluster with all that runs in it, and waits until nothing of it is left but the run folder.
// It is called once.
func (c *Cluster) Stop() error {
	c.stopping.Store(true)
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return errors.Join(c.network.Close(), c.sandbox.Stop())
}
