package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// Where a container finds its own memory limit: cgroup v2, then v1.
var memoryLimitFiles = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// limitMemory has the garbage collector work harder above three eighths of the
// container's memory limit, so that with the program's own pages it is within half.
// It returns what it set, in bytes; 0 where there is no limit.
func limitMemory(files []string) int64 {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// "max" in v2, and in v1 a number beyond every machine, are none.
		limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || limit <= 0 || limit >= 1<<40 {
			return 0
		}
		limit = limit / 8 * 3
		debug.SetMemoryLimit(limit)
		return limit
	}
	return 0
}
