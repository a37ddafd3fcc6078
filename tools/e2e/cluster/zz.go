package cluster

import (
	"path/filepath"
	"strings"
)

func (c *Container) CPUNanos() int64 {
	n, _ := readNumber(filepath.Join(strings.Replace(c.cpu, "/cgroup/cpu/", "/cgroup/cpuacct/", 1), "cpuacct.usage"))
	return int64(n)
}
