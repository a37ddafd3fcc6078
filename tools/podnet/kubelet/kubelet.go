// Package kubelet runs the native sidecars of a pod as the kubelet does: volumes,
// environment, security contexts, sysctls, limits, start in order, exec probes. It
// goes by the pod alone, and refuses what it does not support rather than leaving
// it out.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// Node is a node of the cluster.
type Node struct {
	// Images are the node's images: their names, and the folders with their
	// files.
	Images map[string]string
	// Folder is the kubelet's folder of the pods: their volumes, tokens among them,
	// and the roots of their containers.
	Folder string
	// HostPaths are the folders of the node that pods may mount: where they are here.
	HostPaths map[string]string
	// Token asks the API server for a pod's token.
	Token func(pod *corev1.Pod, audience string, lifetime time.Duration) (string, error)
	// Log opens what else gets the lines that a container writes. It is closed when
	// the container has ended. nil: they are in [Sidecar.Log] only.
	Log func(pod *corev1.Pod, container string) (io.WriteCloser, error)
	// Limits: the containers have no more CPU time and memory than the pod gives
	// them. It takes root.
	Limits bool
}

// Pod is a pod on a node.
type Pod struct {
	node     *Node
	pod      *corev1.Pod
	network  *podnet.Namespace
	folder   string // no other pod on the machine has one of that name
	sidecars []*Sidecar
}

// Sandbox makes a pod's sandbox in the network that the CNI plugin has made for it:
// as the container runtime does, it sets the pod's sysctls when that is there.
func (n *Node) Sandbox(pod *corev1.Pod, network *podnet.Namespace) (*Pod, error) {
	p := &Pod{node: n, pod: pod, network: network}
	if security := pod.Spec.SecurityContext; security != nil {
		for _, s := range security.Sysctls {
			if err := network.Sysctl(s.Name, s.Value); err != nil {
				return nil, err
			}
		}
	}
	if err := os.MkdirAll(n.Folder, 0o755); err != nil {
		return nil, err
	}
	var err error
	if p.folder, err = os.MkdirTemp(n.Folder, pod.Name+"-"); err != nil {
		return nil, err
	}
	// The sidecars' users find their volumes in it.
	return p, os.Chmod(p.folder, 0o755)
}

// Start makes a pod's sandbox and starts the named sidecars in the order given.
// When it fails, nothing goes on running.
func (n *Node) Start(pod *corev1.Pod, network *podnet.Namespace, sidecars []string) (*Pod, error) {
	p, err := n.Sandbox(pod, network)
	if err != nil {
		return nil, err
	}
	for _, name := range sidecars {
		c, err := p.Sidecar(name)
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			return nil, errors.Join(err, p.Stop())
		}
	}
	return p, nil
}

// Sidecars are those that [Pod.Sidecar] has found, in that order.
func (p *Pod) Sidecars() []*Sidecar { return p.sidecars }

// probePatience is how long a liveness probe has at first. It has twice as long
// at each next run: before the sidecar is up there is nobody to answer.
const probePatience = 50 * time.Millisecond

// Live runs the liveness probes of the sidecars that have one until each has
// succeeded, and returns the names of those. Unlike the kubelet it does not
// wait a whole period after a failure.
func (p *Pod) Live(ctx context.Context) ([]string, error) {
	var names []string
	for _, c := range p.sidecars {
		probe := c.of.LivenessProbe
		if probe == nil {
			continue
		}
		if probe.Exec == nil {
			return nil, fmt.Errorf("container %s: its liveness probe is not of kind exec", c.Name)
		}
		for patience := probePatience; ; patience *= 2 {
			limited, cancel := context.WithTimeout(ctx, patience)
			_, err := c.Exec(limited, probe.Exec.Command...)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("container %s: liveness probe: %w", c.Name, err)
			}
			if err := p.Check(); err != nil {
				return nil, err
			}
		}
		names = append(names, c.Name)
	}
	return names, nil
}

// Check returns an error when one of the sidecars has ended, with what it said
// last.
func (p *Pod) Check() error {
	for _, c := range p.sidecars {
		if err := c.Check(); err != nil {
			return err
		}
	}
	return nil
}

// LastWords are the last lines of each sidecar's log.
func (p *Pod) LastWords() string {
	var words strings.Builder
	for _, c := range p.sidecars {
		fmt.Fprintf(&words, "log of %s:\n%s\n", c.Name, c.log.lastLines())
	}
	return words.String()
}

// Stop ends the sidecars that run, the last one first, and removes what was made
// for them. It may be called twice. An error means that one of them did not end by
// itself and with exit code 0.
func (p *Pod) Stop() error {
	var errs []error
	for _, c := range slices.Backward(p.sidecars) {
		errs = append(errs, c.Stop())
		if c.Group != nil {
			errs = append(errs, c.Group.Remove())
		}
	}
	p.sidecars = nil
	return errors.Join(append(errs, os.RemoveAll(p.folder))...)
}
