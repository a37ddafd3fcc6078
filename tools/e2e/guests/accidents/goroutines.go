package accidents

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
)

// goroutineLeaks says which sidecars have more goroutines than one that has just been started, and notes how many.
// What they have, Go writes to the log of a process that SIGQUIT ends: the product needs no port for that.
func (s *story) goroutineLeaks(m *measured) []string {
	var leaks []string
	for _, c := range s.sidecars() {
		old := s.quit(c)
		s.startAnew(c)
		young := s.quit(c)
		s.startAnew(c)
		m.notes = append(m.notes, fmt.Sprintf("%s: %d goroutines, just started %d", c.Name, old, young))
		if old == 0 || young == 0 {
			leaks = append(leaks, fmt.Sprintf("%s tells no goroutine at SIGQUIT", c.Name))
		}
		if old > young {
			leaks = append(leaks, fmt.Sprintf("%s has %d goroutines more than the %d of one just started", c.Name, old-young, young))
		}
	}
	return leaks
}

// created is what Go writes of a goroutine's origin. Those of the runtime itself, such as the garbage collector's,
// come when they are needed and stay.
var created = regexp.MustCompile(`(?m)^created by (\S+)`)

// quit ends a sidecar and returns how many goroutines it had started.
func (s *story) quit(c *stage.Sidecar) (n int) {
	from := len(c.Log())
	c.Quit()
	for _, origin := range created.FindAllStringSubmatch(c.Log()[from:], -1) {
		if !strings.HasPrefix(origin[1], "runtime.") {
			n++
		}
	}
	return n
}

// startAnew starts a sidecar and waits until it does its work: then it has all the goroutines that it keeps.
func (s *story) startAnew(c *stage.Sidecar) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	from := len(c.Log())
	s.t.Check(c.Start())
	if c == s.vm.Init {
		s.t.Check(c.AwaitLogAfter(ctx, from, "msg=wired"))
	} else {
		s.t.Check(s.awaitListening(ctx, from))
	}
	s.vm.AwaitAnswers(3)
}
