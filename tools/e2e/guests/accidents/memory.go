package accidents

import (
	"fmt"
	"os"
	"strings"
)

// memoryGrowth is how much more memory than before a sidecar may have after a hundred accidents, in KiB: less than
// 100 KiB for each.
const memoryGrowth = 8 << 10

// size is what a process has of the machine, by /proc/PID/status.
type size struct{ memory, threads int } // memory in KiB

// sizes reads those of the sidecars.
func (s *story) sizes() map[string]size {
	all := map[string]size{}
	for _, c := range s.sidecars() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
		s.t.Check(err)
		var of size
		for line := range strings.Lines(string(status)) {
			fmt.Sscanf(line, "VmRSS: %d", &of.memory)
			fmt.Sscanf(line, "Threads: %d", &of.threads)
		}
		if of.memory == 0 || of.threads == 0 {
			s.t.Fatalf("%s: no VmRSS or no Threads in %s", c.Name, status)
		}
		all[c.Name] = of
	}
	return all
}

// growth says which sidecars have grown too much, and notes how much all have.
func (m *measured) growth(before, after map[string]size) (leaks []string) {
	for name, now := range after {
		then := before[name]
		m.notes = append(m.notes, fmt.Sprintf("%s: memory %d KiB, before %d; threads %d, before %d",
			name, now.memory, then.memory, now.threads, then.threads))
		if now.memory > then.memory+memoryGrowth {
			leaks = append(leaks, fmt.Sprintf("%s has %d KiB of memory, before the accidents %d", name, now.memory, then.memory))
		}
	}
	return leaks
}
