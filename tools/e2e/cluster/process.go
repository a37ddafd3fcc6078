package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

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
