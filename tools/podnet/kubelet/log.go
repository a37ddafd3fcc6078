package kubelet

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// log is all that a container has written, over all its starts.
type log struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed at the next write; nil: nobody waits
}

func (l *log) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(data)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// find says whether a text is in the log from a position on, and what tells when
// there is more.
func (l *log) find(position int, text string) (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return strings.Contains(l.text.String()[position:], text), l.more
}

// shownLines is how many lines of a log explain a failure.
const shownLines = 10

// lastLines returns the end of the log.
func (l *log) lastLines() string {
	lines := strings.Split(strings.TrimSpace(l.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-shownLines):], "\n")
}

// Log is all that the sidecar has written, over all its starts.
func (c *Sidecar) Log() string { return c.log.String() }

// AwaitLog returns when the sidecar has written a text. What was there before the
// call, or before its last start, counts.
func (c *Sidecar) AwaitLog(ctx context.Context, text string) error {
	return c.AwaitLogAfter(ctx, 0, text)
}

// AwaitLogAfter is AwaitLog for what comes after a log of that many bytes.
func (c *Sidecar) AwaitLogAfter(ctx context.Context, position int, text string) error {
	for {
		found, more := c.log.find(position, text)
		if found {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%s did not say %q: %w", c.Name, text, context.Cause(ctx))
		}
	}
}
