// Package cgroup makes the cgroups of containers, finds those that somebody else
// has made, and reads what their processes use.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Mount is where the machine has its hierarchies: cgroup v2's one, or one for
// each controller of cgroup v1.
const Mount = "/sys/fs/cgroup"

// cpuPeriod is the kubelet's: the time in which a container may use its share of
// CPU, in microseconds.
const cpuPeriod = 100_000

// Group is the cgroup of a container: one folder in cgroup v2, and one for each
// of the two controllers in cgroup v1.
type Group struct {
	memory, cpu string
}

// IsUnified says whether the machine has cgroup v2 only.
func IsUnified() bool {
	_, err := os.Stat(filepath.Join(Mount, "cgroup.controllers"))
	return err == nil
}

func (g *Group) unified() bool { return g.memory == g.cpu }

// New makes a group of that name with limits: thousandths of a CPU, and bytes of
// memory; 0: none. It takes root.
func New(name string, cpu, memory int64) (*Group, error) {
	g, err := newGroup(name, cpu*cpuPeriod/1000, memory)
	if err != nil {
		return nil, errors.Join(err, g.Remove())
	}
	return g, nil
}

func newGroup(name string, quota, memory int64) (*Group, error) {
	if IsUnified() {
		folder := filepath.Join(Mount, name)
		return &Group{folder, folder}, errors.Join(
			write(filepath.Join(Mount, "cgroup.subtree_control"), "+cpu +memory"),
			os.Mkdir(folder, 0o755),
			write(filepath.Join(folder, "memory.max"), orNone(memory, "max")),
			write(filepath.Join(folder, "cpu.max"), orNone(quota, "max"), cpuPeriod),
		)
	}
	g := &Group{filepath.Join(Mount, "memory", name), filepath.Join(Mount, "cpu", name)}
	return g, errors.Join(
		os.Mkdir(g.memory, 0o755),
		os.Mkdir(g.cpu, 0o755),
		write(filepath.Join(g.memory, "memory.limit_in_bytes"), orNone(memory, -1)),
		write(filepath.Join(g.cpu, "cpu.cfs_period_us"), cpuPeriod),
		write(filepath.Join(g.cpu, "cpu.cfs_quota_us"), orNone(quota, -1)),
	)
}

// orNone is a limit, or the kernel's word for there being none.
func orNone(limit int64, none any) any {
	if limit == 0 {
		return none
	}
	return limit
}

func write(file string, words ...any) error {
	return os.WriteFile(file, fmt.Append(nil, words...), 0)
}

// Find finds the group whose folder has a name, somewhere below that of a parent.
// Where exactly a kubelet puts it depends on the QoS class of its pod.
func Find(parent, name string) (*Group, error) {
	if IsUnified() {
		folder, err := findFolder(filepath.Join(Mount, parent), name)
		return &Group{folder, folder}, err
	}
	memory, err := findFolder(filepath.Join(Mount, "memory", parent), name)
	if err != nil {
		return nil, err
	}
	cpu, err := findFolder(filepath.Join(Mount, "cpu", parent), name)
	return &Group{memory, cpu}, err
}

func findFolder(root, name string) (string, error) {
	found := ""
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // another one, gone meanwhile
		case err == nil && entry.Name() == name:
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no cgroup of container %q below %s: it does not run", name, root)
	}
	return found, err
}

// Folders are where a process writes itself to cgroup.procs to join.
func (g *Group) Folders() []string {
	if g.unified() {
		return []string{g.memory}
	}
	return []string{g.memory, g.cpu}
}

// Remove removes the group. That it is gone is no error.
func (g *Group) Remove() error {
	var errs []error
	for _, folder := range g.Folders() {
		errs = append(errs, Remove(folder))
	}
	return errors.Join(errs...)
}

const (
	// removalTime is how long the last processes may take to leave their cgroups.
	// Neither version of cgroup reports that a folder can be removed: a dead process
	// leaves its group only some time after it was reaped.
	removalTime = 10 * time.Second
	removalStep = 10 * time.Millisecond
)

// Remove ends what still runs in the group of a folder, and in those below it, and
// removes them. That it is gone is no error.
func Remove(folder string) error {
	for deadline := time.Now().Add(removalTime); ; time.Sleep(removalStep) {
		err := removeTree(folder)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}

// removeTree kills what runs in a group and in those below it, and removes them, the
// deepest first.
func removeTree(folder string) error {
	var folders []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile, as intended
		}
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, folder := range slices.Backward(folders) {
		processes, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(string(processes)) {
			number, err := strconv.Atoi(pid)
			if err != nil {
				return fmt.Errorf("process %q in %s: %w", pid, folder, err)
			}
			syscall.Kill(number, syscall.SIGKILL)
		}
		if err := os.Remove(folder); err != nil {
			return err
		}
	}
	return nil
}

// Pid is the group's first process, as the machine numbers it.
func (g *Group) Pid() (int, error) {
	content, err := os.ReadFile(filepath.Join(g.memory, "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(content), "\n")
	return strconv.Atoi(first)
}

// WorkingSet is the group's memory in bytes without what the kernel would drop first: the figure by which
// a kubelet judges (cadvisor: container/libcontainer, setMemoryStats).
func (g *Group) WorkingSet() (int, error) {
	file, statistic := "memory.usage_in_bytes", "total_inactive_file"
	if g.unified() {
		file, statistic = "memory.current", "inactive_file"
	}
	usage, err := readNumber(filepath.Join(g.memory, file))
	if err != nil {
		return 0, err
	}
	inactive, err := g.statistic(filepath.Join(g.memory, "memory.stat"), statistic)
	return usage - inactive, err
}

// MemoryPeak is the most memory in bytes that the group ever had, caches included.
func (g *Group) MemoryPeak() (int, error) {
	if g.unified() {
		return readNumber(filepath.Join(g.memory, "memory.peak"))
	}
	return readNumber(filepath.Join(g.memory, "memory.max_usage_in_bytes"))
}

// MemoryLimit is the most memory in bytes that the group may have.
func (g *Group) MemoryLimit() (int, error) {
	if g.unified() {
		return readNumber(filepath.Join(g.memory, "memory.max"))
	}
	return readNumber(filepath.Join(g.memory, "memory.limit_in_bytes"))
}

// CPULimit is the share of one CPU in thousandths that the group may use.
func (g *Group) CPULimit() (int, error) {
	if g.unified() {
		content, err := os.ReadFile(filepath.Join(g.cpu, "cpu.max"))
		if err != nil {
			return 0, err
		}
		var quota, period int
		if _, err := fmt.Sscan(string(content), &quota, &period); err != nil {
			return 0, fmt.Errorf("cpu.max is %q: %w", content, err)
		}
		return quota * 1000 / period, nil
	}
	quota, err := readNumber(filepath.Join(g.cpu, "cpu.cfs_quota_us"))
	if err != nil {
		return 0, err
	}
	period, err := readNumber(filepath.Join(g.cpu, "cpu.cfs_period_us"))
	if err != nil {
		return 0, err
	}
	return quota * 1000 / period, nil
}

// ThrottledPeriods is how many times the group wanted more CPU time than its limit gives it in a tenth of
// a second.
func (g *Group) ThrottledPeriods() (int, error) {
	return g.statistic(filepath.Join(g.cpu, "cpu.stat"), "nr_throttled")
}

func (g *Group) statistic(file, name string) (int, error) {
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
