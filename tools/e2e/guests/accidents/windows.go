package accidents

import (
	"slices"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// windows are stretches of time in which something may happen that may not happen otherwise.
type windows struct {
	mu  sync.Mutex
	all []window
}

type window struct {
	from, to time.Time // to is zero while it lasts
	failures []hand.Failure
	// silent: who waits for an answer when it begins is not told that none will come. The other end cannot reach
	// it, and it has nothing to send that would be refused.
	silent bool
}

func (w *windows) add(one window) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

// open begins a window, close ends it.
func (w *windows) open(from time.Time) { w.add(window{from: from}) }

func (w *windows) close(to time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[len(w.all)-1].to = to
}

// excuse says whether a request was under way in a window that allows that it fails so. Begin is the earliest, end the
// latest time that it can have had.
func (w *windows) excuse(f hand.Failure, begin, end time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.all, func(one window) bool {
		if f == hand.Timeout {
			return one.silent && begin.Before(one.from) && end.After(one.from)
		}
		return slices.Contains(one.failures, f) && begin.Before(one.to) && end.After(one.from)
	})
}
