package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

// patches are where the declared patch says what the sidecars may use, from the repository's folder.
var patches = map[string]string{
	"imds-init":   "kustomize/sidecar/10-imds-init.yaml",
	"imds-server": "kustomize/sidecar/20-imds-server.yaml",
}

// limit gives a sidecar, and its probes, a cgroup for each kind of limit that the declared patch has, as the
// kubelet does. They are gone at the end of the check.
func (v *VM) limit(c *Sidecar, repository string) {
	limits, err := declaredLimits(filepath.Join(repository, patches[c.Name]), c.Name)
	Check(v.t, err)
	memory, cpu, err := makeGroups(fmt.Sprintf("%s-%s", filepath.Base(v.tokens.folder), c.Name), limits)
	Check(v.t, err)
	c.Group = cluster.ContainerIn(memory, cpu)
	for _, folder := range []string{memory, cpu} {
		c.join += fmt.Sprintf("echo $$ >%s/cgroup.procs && ", folder)
		v.later(func() { v.clean(removeGroup(folder)) })
	}
}

// declaredLimits reads them from a patch for a pod.
func declaredLimits(file, container string) (corev1.ResourceList, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(text, &pod); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, c := range pod.Spec.InitContainers {
		if c.Name == container {
			return c.Resources.Limits, nil
		}
	}
	return nil, fmt.Errorf("%s has no container %s", file, container)
}

const (
	cgroupMount = "/sys/fs/cgroup"
	// cpuPeriod is the kubelet's: the time in which a container may use its share, in microseconds.
	cpuPeriod = 100_000
)

// makeGroups makes the cgroups of a container and returns their folders, which are one in cgroup v2.
func makeGroups(name string, limits corev1.ResourceList) (memory, cpu string, err error) {
	quota := limits.Cpu().MilliValue() * cpuPeriod / 1000
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		folder := filepath.Join(cgroupMount, name)
		return folder, folder, errors.Join(
			os.WriteFile(filepath.Join(cgroupMount, "cgroup.subtree_control"), []byte("+cpu +memory"), 0),
			os.Mkdir(folder, 0o755),
			os.WriteFile(filepath.Join(folder, "memory.max"), fmt.Append(nil, limits.Memory().Value()), 0),
			os.WriteFile(filepath.Join(folder, "cpu.max"), fmt.Append(nil, quota, cpuPeriod), 0),
		)
	}
	memory, cpu = filepath.Join(cgroupMount, "memory", name), filepath.Join(cgroupMount, "cpu", name)
	return memory, cpu, errors.Join(
		os.Mkdir(memory, 0o755),
		os.Mkdir(cpu, 0o755),
		os.WriteFile(filepath.Join(memory, "memory.limit_in_bytes"), fmt.Append(nil, limits.Memory().Value()), 0),
		os.WriteFile(filepath.Join(cpu, "cpu.cfs_period_us"), fmt.Append(nil, cpuPeriod), 0),
		os.WriteFile(filepath.Join(cpu, "cpu.cfs_quota_us"), fmt.Append(nil, quota), 0),
	)
}

const (
	// removalTime is how long the last process may take to leave its cgroup, which the kernel does not report: it
	// does so some time after the process was reaped.
	removalTime = 10 * time.Second
	removalStep = 10 * time.Millisecond
)

// removeGroup removes a cgroup in which nothing runs any more. That it is gone is no error.
func removeGroup(folder string) error {
	for deadline := time.Now().Add(removalTime); ; time.Sleep(removalStep) {
		err := os.Remove(folder)
		if err == nil || os.IsNotExist(err) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}
