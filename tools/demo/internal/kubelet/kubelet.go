// Package kubelet plays the kubelet for the native sidecars of a pod: volumes,
// environment, security contexts, sysctls, start in order, exec probes. It goes
// by the pod alone, and refuses what it does not play rather than leaving it
// out.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/demo/internal/container"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Node is a node of the cluster.
type Node struct {
	// Images are the node's images: their names, and the folders with their
	// files.
	Images map[string]string
	// Folder is where volumes and containers' roots are kept. Tokens are in
	// there.
	Folder string
	// Logs is a folder that gets one file per container.
	Logs string
	// Token asks the API server for a pod's token.
	Token func(pod *corev1.Pod, audience string, lifetime time.Duration) (string, error)
}

// Pod is a pod on a node.
type Pod struct {
	node       *Node
	pod        *corev1.Pod
	network    *podnet.Namespace
	folder     string
	containers []*running
}

type running struct {
	*container.Container
	of  corev1.Container
	log string
}

// Start sets the pod's sysctls and starts the named sidecars in the order in
// which the pod has them. When it fails, nothing goes on running.
func (n *Node) Start(pod *corev1.Pod, network *podnet.Namespace, sidecars []string) (*Pod, error) {
	p := &Pod{node: n, pod: pod, network: network, folder: filepath.Join(n.Folder, pod.Name)}
	if err := p.start(sidecars); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func (p *Pod) start(sidecars []string) error {
	if security := p.pod.Spec.SecurityContext; security != nil {
		for _, s := range security.Sysctls {
			if err := p.network.Sysctl(s.Name, s.Value); err != nil {
				return err
			}
		}
	}
	for _, name := range sidecars {
		c, err := findSidecar(p.pod, name)
		if err != nil {
			return err
		}
		started, err := p.startContainer(c)
		if err != nil {
			return err
		}
		p.containers = append(p.containers, started)
	}
	return nil
}

// Kill ends a sidecar with SIGKILL, as a lack of memory would, and starts it
// again, as its restart policy asks for.
func (p *Pod) Kill(name string) error {
	for i, c := range p.containers {
		if c.Name != name {
			continue
		}
		c.Container.Kill()
		started, err := p.startContainer(c.of)
		if err != nil {
			return err
		}
		p.containers[i] = started
		return nil
	}
	return fmt.Errorf("no sidecar %s is running", name)
}

// findSidecar finds a native sidecar: an init container that is always
// restarted.
func findSidecar(pod *corev1.Pod, name string) (corev1.Container, error) {
	for _, c := range pod.Spec.InitContainers {
		if c.Name != name {
			continue
		}
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			return c, fmt.Errorf("init container %s is no native sidecar: it has no restartPolicy Always", name)
		}
		if c.StartupProbe != nil {
			return c, fmt.Errorf("sidecar %s has a startup probe: the VM's own container would wait for it", name)
		}
		return c, nil
	}
	return corev1.Container{}, fmt.Errorf("the pod has no init container %s", name)
}

func (p *Pod) startContainer(c corev1.Container) (*running, error) {
	spec, err := p.spec(c, c.Name, slices.Concat(c.Command, c.Args))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	path := filepath.Join(p.node.Logs, p.pod.Name+"."+c.Name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	started, err := container.Start(p.network, spec, log)
	if err != nil {
		return nil, err
	}
	return &running{started, c, path}, nil
}

// spec is what the kubelet tells the container runtime. The scratch folder is
// named after id.
func (p *Pod) spec(c corev1.Container, id string, command []string) (container.Spec, error) {
	image, ok := p.node.Images[c.Image]
	if !ok {
		return container.Spec{}, fmt.Errorf("image %q is not on the node", c.Image)
	}
	env, err := environment(p.pod, c)
	if err != nil {
		return container.Spec{}, err
	}
	mounts, err := p.mounts(c)
	if err != nil {
		return container.Spec{}, err
	}
	scratch := filepath.Join(p.folder, "containers", id)
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return container.Spec{}, err
	}
	spec := container.Spec{
		Name:    c.Name,
		Image:   image,
		Scratch: scratch,
		Mounts:  mounts,
		Command: command,
		Env:     env,
	}
	return spec, applySecurity(&spec, p.pod, c)
}

// Status is a sidecar as it runs.
type Status struct {
	Name    string
	Command []string
	container.Status
}

// Status asks the kernel about each sidecar.
func (p *Pod) Status() ([]Status, error) {
	var all []Status
	for _, c := range p.containers {
		s, err := c.Container.Status()
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		all = append(all, Status{c.Name, slices.Concat(c.of.Command, c.of.Args), s})
	}
	return all, nil
}

// probePatience is how long a liveness probe has at first. It has twice as long
// at each next run: before the sidecar is up there is nobody to answer.
const probePatience = 50 * time.Millisecond

// Live runs the liveness probes of the sidecars that have one until each has
// succeeded, and returns the names of those. Unlike the kubelet it does not
// wait a whole period after a failure.
func (p *Pod) Live(ctx context.Context) ([]string, error) {
	var names []string
	for _, c := range p.containers {
		probe := c.of.LivenessProbe
		if probe == nil {
			continue
		}
		if probe.Exec == nil {
			return nil, fmt.Errorf("container %s: its liveness probe is not of kind exec", c.Name)
		}
		err := p.exec(ctx, c.of, probe.Exec.Command, probePatience)
		for patience := 2 * probePatience; err != nil; patience *= 2 {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("container %s: liveness probe: %w", c.Name, err)
			}
			if err := p.Check(); err != nil {
				return nil, err
			}
			err = p.exec(ctx, c.of, probe.Exec.Command, patience)
		}
		names = append(names, c.Name)
	}
	return names, nil
}

// exec runs a command as the runtime's exec does, in a container like the
// running one.
func (p *Pod) exec(ctx context.Context, c corev1.Container, command []string, limit time.Duration) error {
	spec, err := p.spec(c, c.Name+"-exec", command)
	if err != nil {
		return err
	}
	log, err := os.CreateTemp(p.folder, "exec")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	run, err := container.Start(p.network, spec, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(ctx, run.Kill)()
	code := run.ExitCode()
	if ctx.Err() != nil {
		return fmt.Errorf("%v has no result within %s", command, limit)
	}
	if code != 0 {
		said, err := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("%v exits with %d: %s", command, code, said), err)
	}
	return nil
}

// Check returns an error when one of the sidecars has ended, with what it said
// last.
func (p *Pod) Check() error {
	for _, c := range p.containers {
		select {
		case <-c.Done():
			return p.failure(c)
		default:
		}
	}
	return nil
}

func (p *Pod) failure(c *running) error {
	return fmt.Errorf("container %s has ended with exit code %d: %s", c.Name, c.ExitCode(), lastLines(c.log))
}

// LastWords are the last lines of each sidecar's log.
func (p *Pod) LastWords() string {
	var words strings.Builder
	for _, c := range p.containers {
		fmt.Fprintf(&words, "log of %s:\n%s\n", c.Name, lastLines(c.log))
	}
	return words.String()
}

// stopGrace is how long a sidecar has to end by itself.
const stopGrace = 5 * time.Second

// Stop ends the sidecars as the kubelet does when the pod is deleted: the last
// one first, with SIGTERM, and with SIGKILL if that does not help. An error
// means that one of them did not end by itself and with exit code 0.
func (p *Pod) Stop() error {
	var errs []error
	for _, c := range slices.Backward(p.containers) {
		if err := c.Terminate(stopGrace); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s", err, lastLines(c.log)))
		}
	}
	p.containers = nil
	return errors.Join(errs...)
}
