package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemFolders are where Debian keeps programs of the administrator; su without a dash leaves them out of
// PATH.
const systemFolders = "/usr/local/sbin:/usr/sbin:/sbin"

// machine is what a cluster uses of the machine besides its own build.
type machine struct {
	runc string
}

// checkMachine finds out whether a cluster can be started here at all, and says everything that is missing
// at once.
func checkMachine() (machine, error) {
	if err := checkUser(os.Geteuid()); err != nil {
		return machine{}, err
	}
	runc, runcErr := findProgram("runc")
	_, nftErr := findProgram("nft")
	var missing, packages []string
	if nftErr != nil {
		missing, packages = append(missing, "nft (for kube-proxy)"), append(packages, "nftables")
	}
	if runcErr != nil {
		missing, packages = append(missing, "runc (it starts the containers)"), append(packages, "runc")
	}
	if len(missing) > 0 {
		return machine{}, fmt.Errorf("missing programs: %s; on Debian: apt-get install --no-install-recommends %s",
			strings.Join(missing, ", "), strings.Join(packages, " "))
	}
	return machine{runc: runc}, checkSeccomp(runc)
}

func checkUser(uid int) error {
	if uid != 0 {
		return fmt.Errorf("uid %d cannot start a cluster, which needs namespaces, mounts and cgroups: run this command as root", uid)
	}
	return nil
}

// checkSeccomp asks runc for its features: built without libseccomp it fails every pod that has a seccomp
// profile.
func checkSeccomp(runc string) error {
	output, err := exec.Command(runc, "features").Output()
	if err != nil {
		return fmt.Errorf("%s features (runc 1.1 or newer is needed): %w", runc, err)
	}
	var features struct {
		Linux struct {
			Seccomp struct {
				Enabled bool `json:"enabled"`
			} `json:"seccomp"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(output, &features); err != nil {
		return fmt.Errorf("%s features: %w", runc, err)
	}
	if !features.Linux.Seccomp.Enabled {
		return fmt.Errorf("%s is built without seccomp, which pods with the profile RuntimeDefault need; Debian's has it: apt-get install --no-install-recommends runc", runc)
	}
	return nil
}

// findProgram looks a program up in PATH and in the administrator's folders.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, folder := range filepath.SplitList(systemFolders) {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// ticks is how many of proc_pid_stat(5)'s units make a second, on every architecture that Go knows.
const ticks = 100

// ProcessStart is when a process began, to a hundredth of a second.
func ProcessStart(pid int) (time.Time, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	// The second field, a name in brackets, may hold anything; starttime is the twentieth after it.
	_, rest, _ := strings.Cut(string(content[strings.LastIndex(string(content), ")"):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("/proc/%d/stat is not understood: %q", pid, content)
	}
	started, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return time.Time{}, err
	}
	age := time.Duration(sinceBoot.Nano()) - time.Duration(started)*time.Second/ticks
	return time.Now().Add(-age), nil
}

// ProcessStatus returns the lines of proc_pid_status(5) by their names.
func ProcessStatus(pid int) (map[string]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	status := map[string]string{}
	for line := range strings.Lines(string(content)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	return status, nil
}
