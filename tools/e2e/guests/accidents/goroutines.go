package accidents

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
)

// goroutineLeaks says which sidecars have more goroutines than one that has just been started. What they have, Go
// writes to the log of a process that SIGQUIT ends: the product needs no port for that.
func (s *story) goroutineLeaks() []string {
	var leaks []string
	for _, c := range s.sidecars() {
		old := s.quit(c)
		s.t.Check(c.Start())
		s.awaitStarted()
		young := s.quit(c)
		s.t.Check(c.Start())
		s.awaitStarted()
		s.t.Logf("%s: %d goroutines after the accidents, %d just started", c.Name, old, young)
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

// awaitStarted waits until a sidecar that was just started serves, and has answered: then it has all the goroutines
// that it keeps.
func (s *story) awaitStarted() {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	s.t.Check(s.vm.Server.AwaitProbe(ctx))
	s.t.Check(s.awaitState(ctx))
	s.vm.AwaitAnswers(3)
}
