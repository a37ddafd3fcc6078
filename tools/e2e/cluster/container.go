package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Container is a container of the cluster as the machine sees it from outside: by its cgroups.
type Container struct {
	memory, cpu string // folders; the same in cgroup v2
	unified     bool
}

// ContainerIn is what runs in cgroups that are known by their folders: that with the memory's files and that with
// the CPU's, which is the same in cgroup v2.
func ContainerIn(memory, cpu string) *Container {
	return &Container{memory: memory, cpu: cpu, unified: memory == cpu}
}

// Container finds a running container by its ID, such as the API has in the status of a pod:
// containerd://0123abcd.
func (c *Cluster) Container(id string) (*Container, error) {
	id = strings.TrimPrefix(id, "containerd://")
	const mount = "/sys/fs/cgroup"
	_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
	if found := (&Container{unified: err == nil}); found.unified {
		found.memory, err = findFolder(filepath.Join(mount, c.name), id)
		found.cpu = found.memory
		return found, err
	}
	found := new(Container)
	if found.memory, err = findFolder(filepath.Join(mount, "memory", c.name), id); err != nil {
		return nil, err
	}
	found.cpu, err = findFolder(filepath.Join(mount, "cpu", c.name), id)
	return found, err
}

// findFolder looks for the folder of a container below that of the cluster. Where exactly it is depends on the
// QoS class of its pod.
func findFolder(root, id string) (string, error) {
	found := ""
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // another one, gone meanwhile
		case err == nil && entry.Name() == id:
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no cgroup of container %q below %s: it does not run", id, root)
	}
	return found, err
}

// Pid is the container's first process, as the machine numbers it.
func (c *Container) Pid() (int, error) {
	content, err := os.ReadFile(filepath.Join(c.memory, "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(content), "\n")
	return strconv.Atoi(first)
}

// WorkingSet is the container's memory in bytes without what the kernel would drop first: the figure by which
// a kubelet judges (cadvisor: container/libcontainer, setMemoryStats).
func (c *Container) WorkingSet() (int, error) {
	file, statistic := "memory.usage_in_bytes", "total_inactive_file"
	if c.unified {
		file, statistic = "memory.current", "inactive_file"
	}
	usage, err := readNumber(filepath.Join(c.memory, file))
	if err != nil {
		return 0, err
	}
	inactive, err := c.statistic(filepath.Join(c.memory, "memory.stat"), statistic)
	return usage - inactive, err
}

// MemoryPeak is the most memory in bytes that the container ever had, caches included.
func (c *Container) MemoryPeak() (int, error) {
	if c.unified {
		return readNumber(filepath.Join(c.memory, "memory.peak"))
	}
	return readNumber(filepath.Join(c.memory, "memory.max_usage_in_bytes"))
}

// MemoryLimit is the most memory in bytes that the container may have.
func (c *Container) MemoryLimit() (int, error) {
	if c.unified {
		return readNumber(filepath.Join(c.memory, "memory.max"))
	}
	return readNumber(filepath.Join(c.memory, "memory.limit_in_bytes"))
}

// CPULimit is the share of one CPU in thousandths that the container may use.
func (c *Container) CPULimit() (int, error) {
	if c.unified {
		content, err := os.ReadFile(filepath.Join(c.cpu, "cpu.max"))
		if err != nil {
			return 0, err
		}
		var quota, period int
		if _, err := fmt.Sscan(string(content), &quota, &period); err != nil {
			return 0, fmt.Errorf("cpu.max is %q: %w", content, err)
		}
		return quota * 1000 / period, nil
	}
	quota, err := readNumber(filepath.Join(c.cpu, "cpu.cfs_quota_us"))
	if err != nil {
		return 0, err
	}
	period, err := readNumber(filepath.Join(c.cpu, "cpu.cfs_period_us"))
	if err != nil {
		return 0, err
	}
	return quota * 1000 / period, nil
}

// ThrottledPeriods is how many times the container wanted more CPU time than its limit gives it in a tenth of
// a second.
func (c *Container) ThrottledPeriods() (int, error) {
	return c.statistic(filepath.Join(c.cpu, "cpu.stat"), "nr_throttled")
}

func (c *Container) statistic(file, name string) (int, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s has no line %s", file, name)
}

func readNumber(file string) (int, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(content)))
}
