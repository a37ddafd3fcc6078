package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/podnet/cgroup"
	"github.com/example/kubevirt-imds/tools/podnet/container"
)

// Sidecar is a native sidecar of a pod, or a container of one that is restarted
// always. It is not safe for concurrent use, but
// for its log.
type Sidecar struct {
	// Name is the container's.
	Name string
	// Group is what it and its probes use of their limits. nil: it has none.
	Group *cgroup.Group
	// WithoutNetfilter: to it, and to its probes, the node's kernel has no
	// nf_tables.
	WithoutNetfilter bool

	pod     *Pod
	of      corev1.Container
	mounts  []container.Mount
	log     log
	running *container.Container // nil: not now
}

// Sidecar finds a native sidecar of the pod, an init container that is always
// restarted, or another container of that name, and gets it ready to start. env is
// added to what the pod declares.
func (p *Pod) Sidecar(name string, env ...string) (*Sidecar, error) {
	of, isInit := find(p.pod.Spec.InitContainers, name)
	if of == nil {
		of, _ = find(p.pod.Spec.Containers, name)
	}
	if of == nil {
		return nil, fmt.Errorf("the pod has no container %s", name)
	}
	if isInit && (of.RestartPolicy == nil || *of.RestartPolicy != corev1.ContainerRestartPolicyAlways) {
		return nil, fmt.Errorf("init container %s is no native sidecar: it has no restartPolicy Always", name)
	}
	if of.StartupProbe != nil {
		return nil, fmt.Errorf("sidecar %s has a startup probe: the VM's own container would wait for it", name)
	}
	of = of.DeepCopy()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		of.Env = append(of.Env, corev1.EnvVar{Name: name, Value: value})
	}
	mounts, err := p.mounts(*of)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	c := &Sidecar{Name: name, pod: p, of: *of, mounts: mounts}
	if p.node.Limits {
		if c.Group, err = cgroup.New(filepath.Base(p.folder)+"-"+name, of.Resources.Limits.Cpu().MilliValue(), of.Resources.Limits.Memory().Value()); err != nil {
			return nil, fmt.Errorf("container %s: %w", name, err)
		}
	}
	p.sidecars = append(p.sidecars, c)
	return c, nil
}

func find(containers []corev1.Container, name string) (*corev1.Container, bool) {
	at := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == name })
	if at < 0 {
		return nil, false
	}
	return &containers[at], true
}

// Command is the container's program with its arguments.
func (c *Sidecar) Command() []string { return slices.Concat(c.of.Command, c.of.Args) }

// Start starts the sidecar, for the first time or after its end.
func (c *Sidecar) Start() error {
	spec, err := c.spec(c.Name, c.Command())
	if err != nil {
		return err
	}
	var writer io.Writer = &c.log
	closeLog := func() error { return nil }
	if c.pod.node.Log != nil {
		copied, err := c.pod.node.Log(c.pod.pod, c.Name)
		if err != nil {
			return err
		}
		writer, closeLog = io.MultiWriter(&c.log, copied), copied.Close
	}
	running, err := container.Start(c.pod.network, spec, writer)
	if err != nil {
		return errors.Join(err, closeLog())
	}
	c.running = running
	go func() {
		<-running.Done()
		closeLog()
	}()
	return nil
}

// spec is what the kubelet tells the container runtime. The scratch folder is
// named after id.
func (c *Sidecar) spec(id string, command []string) (container.Spec, error) {
	spec := container.Spec{Name: c.Name, Command: command, Mounts: c.mounts, WithoutNetfilter: c.WithoutNetfilter}
	if err := c.complete(&spec, id); err != nil {
		return spec, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return spec, nil
}

func (c *Sidecar) complete(spec *container.Spec, id string) (err error) {
	var here bool
	if spec.Image, here = c.pod.node.Images[c.of.Image]; !here {
		return fmt.Errorf("image %q is not on the node", c.of.Image)
	}
	if spec.Env, err = environment(c.pod.pod, c.of); err != nil {
		return err
	}
	if c.Group != nil {
		spec.Cgroups = c.Group.Folders()
	}
	spec.Scratch = filepath.Join(c.pod.folder, "containers", id)
	if err := os.MkdirAll(spec.Scratch, 0o755); err != nil {
		return err
	}
	return applySecurity(spec, c.pod.pod, c.of)
}

// PID is the number of the process of a sidecar that runs.
func (c *Sidecar) PID() int { return c.running.PID() }

// Status asks the kernel about a sidecar that runs.
func (c *Sidecar) Status() (container.Status, error) { return c.running.Status() }

// Done is closed when the process of a sidecar that runs has ended.
func (c *Sidecar) Done() <-chan struct{} { return c.running.Done() }

// Signal sends a signal to a sidecar that runs.
func (c *Sidecar) Signal(s syscall.Signal) { c.running.Signal(s) }

// Kill ends the sidecar by SIGKILL, as a lack of memory would, and returns when it
// has ended. [Sidecar.Start] starts it again, as its restart policy asks for.
func (c *Sidecar) Kill() { c.end(syscall.SIGKILL) }

// Quit ends the sidecar by SIGQUIT, at which Go writes to its log what each
// goroutine is at, and returns when it has ended.
func (c *Sidecar) Quit() { c.end(syscall.SIGQUIT) }

func (c *Sidecar) end(signal syscall.Signal) {
	running := c.running
	c.running = nil
	if running == nil {
		return
	}
	running.Signal(signal)
	select {
	case <-running.Done():
	case <-time.After(stopGrace):
		running.Kill()
	}
}

// stopGrace is how long a sidecar has to end by itself.
const stopGrace = 10 * time.Second

// Stop ends the sidecar as the kubelet does when the pod is deleted: with SIGTERM,
// and with SIGKILL if that does not help. An error means that it did not end by
// itself and with exit code 0. One that does not run is no error.
func (c *Sidecar) Stop() error {
	if c.running == nil {
		return nil
	}
	running := c.running
	c.running = nil
	if err := running.Terminate(stopGrace); err != nil {
		return fmt.Errorf("%w: %s", err, c.log.lastLines())
	}
	return nil
}

// Check returns an error when the sidecar has ended though nobody asked for it,
// with what it said last.
func (c *Sidecar) Check() error {
	if c.running == nil {
		return nil
	}
	select {
	case <-c.running.Done():
		return fmt.Errorf("container %s has ended with exit code %d: %s", c.Name, c.running.ExitCode(), c.log.lastLines())
	default:
		return nil
	}
}

// Exec runs a command to its end as the runtime's exec does, in a container like
// the sidecar's, and returns what it said.
func (c *Sidecar) Exec(ctx context.Context, command ...string) (string, error) {
	spec, err := c.spec(c.Name+"-exec", command)
	if err != nil {
		return "", err
	}
	var said log
	run, err := container.Start(c.pod.network, spec, &said)
	if err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, run.Kill)()
	code := run.ExitCode()
	if ctx.Err() != nil {
		return said.String(), fmt.Errorf("%v has no result: %w", command, context.Cause(ctx))
	}
	if code != 0 {
		return said.String(), fmt.Errorf("%v exits with %d: %s", command, code, said.String())
	}
	return said.String(), nil
}

// Probe runs the sidecar's program with the word probe, as its exec probes do.
func (c *Sidecar) Probe(ctx context.Context, arguments ...string) error {
	_, err := c.Exec(ctx, slices.Concat(c.of.Command, []string{"probe"}, arguments)...)
	return err
}
