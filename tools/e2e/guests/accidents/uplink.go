package accidents

import (
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// readLate is how long after it has passed a frame may be read.
const readLate = 100 * time.Millisecond

// mayLeave says whether a frame was on the uplink while nothing could hold it back: a guest in bridge binding sends its
// question to its gateway, and only a rule turns it round. The answer to it is nobody's, and the token not in it.
func (w *windows) mayLeave(f podnet.Frame) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.all {
		if f.At.After(one.from) && (one.to.IsZero() || f.At.Before(one.to.Add(readLate))) {
			return true
		}
	}
	return false
}
