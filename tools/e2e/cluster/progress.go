package cluster

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// patience is how long anything may take in silence; a longer step says every so often how far it is.
const patience = 10 * time.Second

// progress tells a person what is going on, each line with the time since the beginning.
type progress struct {
	mutex sync.Mutex
	to    io.Writer
	begin time.Time
}

func newProgress(to io.Writer) *progress {
	return &progress{to: to, begin: time.Now()}
}

func (p *progress) say(format string, args ...any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	fmt.Fprintf(p.to, "[%6.1fs] %s\n", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

// during says what status returns every so often until the returned function is called; nothing is said after
// that returns.
func (p *progress) during(status func() string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(patience)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.say("%s", status())
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
