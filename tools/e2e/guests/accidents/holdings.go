package accidents

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
)

// settleLimit is how long a sidecar may hold what it is about to let go: the connections whose device was deleted
// end by the server's time limits.
const settleLimit = 15 * time.Second

func (s *story) sidecars() []*stage.Sidecar { return []*stage.Sidecar{s.vm.Init, s.vm.Server} }

// descriptors counts the open files of the sidecars.
func (s *story) descriptors() map[string]int {
	open := map[string]int{}
	for _, c := range s.sidecars() {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
		s.t.Check(err)
		open[c.Name] = len(entries)
	}
	return open
}

// leaks says what there is now that was not there before the first accident, or is missing.
func (s *story) leaks() []string {
	var leaks []string
	now, err := readState(s.vm.Net.Pod)
	s.t.Check(err)
	leaks = append(leaks, s.before.difference(now)...)
	for name, more := range s.awaitDescriptors() {
		leaks = append(leaks, fmt.Sprintf("%s has %d open files more than the %d of before", name, more, s.held[name]))
	}
	return leaks
}

// awaitDescriptors waits until no sidecar has more open files than it had before, and returns how many more there
// are where that does not happen.
func (s *story) awaitDescriptors() map[string]int {
	for deadline := time.Now().Add(settleLimit); ; {
		more := map[string]int{}
		for name, count := range s.descriptors() {
			if count > s.held[name] {
				more[name] = count - s.held[name]
			}
		}
		if len(more) == 0 || time.Now().After(deadline) {
			return more
		}
		time.Sleep(20 * time.Millisecond) // nothing tells that another process has closed a file
	}
}

// evidence is what a person needs to find out why something failed.
func (s *story) evidence() string {
	var text bytes.Buffer
	for _, c := range s.sidecars() {
		fmt.Fprintf(&text, "end of the log of %s:\n%s\n", c.Name, tail(c.Log(), 8000))
	}
	fmt.Fprintf(&text, "end of the guest's console:\n%s\n", tail(s.vm.Guest.Console(), 1000))
	for _, command := range [][]string{{"ip", "-d", "address"}, {"ip", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}} {
		fmt.Fprintf(&text, "%s:\n%s\n", strings.Join(command, " "), s.inPod(command))
	}
	return text.String()
}

// inPod runs a program in the pod's network, where the machine has it.
func (s *story) inPod(command []string) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), settleLimit)
	defer cancel()
	var said bytes.Buffer
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdout, c.Stderr = &said, &said
	err := s.vm.Net.Pod.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		fmt.Fprintln(&said, err)
	}
	return said.String()
}

// tail is the end of a text, from the begin of a line on.
func tail(text string, length int) string {
	if len(text) <= length {
		return text
	}
	_, rest, _ := strings.Cut(text[len(text)-length:], "\n")
	return rest
}
