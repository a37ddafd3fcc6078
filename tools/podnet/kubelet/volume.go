package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/podnet/container"
)

// mounts makes the volumes that a container mounts, where they are missing.
func (p *Pod) mounts(c corev1.Container) ([]container.Mount, error) {
	var mounts []container.Mount
	for _, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			return nil, fmt.Errorf("volume %s: subPath is not supported here", m.Name)
		}
		folder, err := p.volume(m.Name)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", m.Name, err)
		}
		mounts = append(mounts, container.Mount{Source: folder, Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	return mounts, nil
}

func (p *Pod) volume(name string) (folder string, err error) {
	at := slices.IndexFunc(p.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if at < 0 {
		return "", fmt.Errorf("the pod has none of that name")
	}
	v := p.pod.Spec.Volumes[at]
	if v.HostPath != nil {
		folder, here := p.node.HostPaths[v.HostPath.Path]
		if !here {
			return "", fmt.Errorf("the node has no %s", v.HostPath.Path)
		}
		return folder, nil
	}
	folder = p.volumeFolder(v)
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	switch {
	case v.EmptyDir != nil:
		return folder, p.makeVolume(folder, 0o777)
	case v.Projected != nil:
		if err := p.makeVolume(folder, 0o755); err != nil {
			return "", err
		}
		return folder, p.project(folder, v.Projected)
	}
	return "", fmt.Errorf("only emptyDir, hostPath and projected volumes are supported here")
}

// volumeFolder is where the kubelet has a volume of its own (k8s.io/kubernetes,
// pkg/kubelet/kubelet_getters.go: getPodVolumeDir).
func (p *Pod) volumeFolder(v corev1.Volume) string {
	plugin := "kubernetes.io~empty-dir"
	if v.Projected != nil {
		plugin = "kubernetes.io~projected"
	}
	return filepath.Join(p.folder, "volumes", plugin, v.Name)
}

// makeVolume makes the folder of a volume. Its group is the pod's fsGroup.
func (p *Pod) makeVolume(folder string, mode os.FileMode) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	// Whatever the umask says.
	if err := os.Chmod(folder, mode); err != nil {
		return err
	}
	return giveToGroup(folder, p.fsGroup())
}

// Refresh issues the tokens of all projected volumes anew, as the kubelet does
// when 80 % of a token's lifetime have passed.
func (p *Pod) Refresh() error {
	for _, v := range p.pod.Spec.Volumes {
		folder := p.volumeFolder(v)
		if _, err := os.Stat(folder); err != nil || v.Projected == nil {
			continue // no sidecar mounts it
		}
		if err := p.project(folder, v.Projected); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// defaultLifetime of a token whose volume says nothing, as in the Kubernetes
// API.
const defaultLifetime = time.Hour

// project writes the content of a projected volume.
func (p *Pod) project(folder string, from *corev1.ProjectedVolumeSource) error {
	files := map[string][]byte{}
	for _, source := range from.Sources {
		t := source.ServiceAccountToken
		if t == nil {
			return fmt.Errorf("only serviceAccountToken is supported here")
		}
		lifetime := defaultLifetime
		if t.ExpirationSeconds != nil {
			lifetime = time.Duration(*t.ExpirationSeconds) * time.Second
		}
		token, err := p.node.Token(p.pod, t.Audience, lifetime)
		if err != nil {
			return fmt.Errorf("token for %s: %w", t.Path, err)
		}
		files[t.Path] = []byte(token)
	}
	// A token is for the pod alone: where the pod has an fsGroup, that is who
	// may read it.
	mode := os.FileMode(0o644)
	if p.fsGroup() != nil {
		mode = 0o640
	}
	return WriteVolume(folder, files, mode, p.fsGroup())
}

func (p *Pod) fsGroup() *int64 {
	if p.pod.Spec.SecurityContext == nil {
		return nil
	}
	return p.pod.Spec.SecurityContext.FSGroup
}
