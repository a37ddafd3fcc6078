package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet/cgroup"
)

// system is the child for everything but pods, which the kubelet puts beside it: in cgroup v2 a group with children
// may hold no process itself.
const system = "system"

// controllers are those of cgroup v2 that a kubelet demands where the kernel has them (kubelet:
// pkg/kubelet/cm, getSupportedUnifiedControllers).
var controllers = []string{"cpu", "cpuset", "memory", "pids", "hugetlb"}

// cgroups are the control groups of one sandbox: one of the same name in each hierarchy.
type cgroups struct {
	folders []string
	// unified says that the machine has cgroup v2 only; before are the controllers that its root handed down
	// to the groups below it, and shall again.
	unified bool
	before  []string
}

// createCgroups makes the groups. What it returns must be removed, also after an error.
func createCgroups(name string) (*cgroups, error) {
	g := new(cgroups)
	if cgroup.IsUnified() {
		before, err := readWords("cgroup.subtree_control")
		if err != nil {
			return g, err
		}
		g.unified, g.before = true, before
		if err := enableControllers(before); err != nil {
			return g, err
		}
	}
	hierarchies, err := listHierarchies()
	if err != nil {
		return g, err
	}
	for _, hierarchy := range hierarchies {
		folder := filepath.Join(hierarchy, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			return g, fmt.Errorf("make cgroup: %w", err)
		}
		g.folders = append(g.folders, folder)
		if err := os.Mkdir(filepath.Join(folder, system), 0o755); err != nil {
			return g, fmt.Errorf("make cgroup: %w", err)
		}
		if err := fillCpuset(hierarchy, folder, filepath.Join(folder, system)); err != nil {
			return g, err
		}
	}
	return g, nil
}

// joinCgroups moves the calling process into the sandbox's groups.
func joinCgroups(name string) error {
	hierarchies, err := listHierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range hierarchies {
		// 0 is the process that writes.
		if err := os.WriteFile(filepath.Join(hierarchy, name, system, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// remove ends what still runs in the groups and removes them and their children.
func (g *cgroups) remove() error {
	for _, folder := range g.folders {
		if err := cgroup.Remove(folder); err != nil {
			return err
		}
	}
	if g.unified {
		return restoreControllers(g.before)
	}
	return nil
}

// listHierarchies returns the root folder of each hierarchy: one in cgroup v2, one for each set of
// controllers in cgroup v1.
func listHierarchies() ([]string, error) {
	if cgroup.IsUnified() {
		return []string{cgroup.Mount}, nil
	}
	entries, err := os.ReadDir(cgroup.Mount)
	if err != nil {
		return nil, err
	}
	var hierarchies []string
	for _, entry := range entries {
		folder := filepath.Join(cgroup.Mount, entry.Name())
		_, err := os.Stat(filepath.Join(folder, "cgroup.procs"))
		// Links are second names, such as cpu for cpu,cpuacct.
		if entry.IsDir() && err == nil {
			hierarchies = append(hierarchies, folder)
		}
	}
	if len(hierarchies) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s", cgroup.Mount)
	}
	return hierarchies, nil
}

// fillCpuset copies the CPUs and memory nodes of a hierarchy into the groups below it: in cgroup v1 they
// start with none, and no process can join them.
func fillCpuset(hierarchy string, groups ...string) error {
	for _, setting := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(hierarchy, setting))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another controller's hierarchy, or cgroup v2, where the root has none and groups inherit
		}
		if err != nil {
			return err
		}
		for _, group := range groups {
			if err := os.WriteFile(filepath.Join(group, setting), value, 0); err != nil {
				return fmt.Errorf("fill cpuset: %w", err)
			}
		}
	}
	return nil
}

// enableControllers has the root of cgroup v2 hand down what a kubelet demands beyond what it does already.
func enableControllers(before []string) error {
	available, err := readWords("cgroup.controllers")
	if err != nil {
		return err
	}
	for _, controller := range controllers {
		if slices.Contains(available, controller) && !slices.Contains(before, controller) {
			if err := writeSubtreeControl("+" + controller); err != nil {
				return err
			}
		}
	}
	return nil
}

// restoreControllers has the root of cgroup v2 hand down no more than before; kubelet and runc enable all
// that there are.
func restoreControllers(before []string) error {
	now, err := readWords("cgroup.subtree_control")
	if err != nil {
		return err
	}
	var failed error
	for _, controller := range now {
		if slices.Contains(before, controller) {
			continue
		}
		// Busy: another sandbox, or somebody else, uses it by now.
		if err := writeSubtreeControl("-" + controller); !errors.Is(err, unix.EBUSY) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

func writeSubtreeControl(change string) error {
	if err := os.WriteFile(filepath.Join(cgroup.Mount, "cgroup.subtree_control"), []byte(change), 0); err != nil {
		return fmt.Errorf("write %s to the root's cgroup.subtree_control: %w", change, err)
	}
	return nil
}

func readWords(file string) ([]string, error) {
	content, err := os.ReadFile(filepath.Join(cgroup.Mount, file))
	return strings.Fields(string(content)), err
}
