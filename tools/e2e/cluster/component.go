package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// readyTime is how long a component may take to be ready; on an idle machine each takes a few seconds.
	readyTime = 3 * time.Minute
	// pollTime is how long to wait before asking a component again whether it is ready.
	pollTime = 50 * time.Millisecond
	tailSize = 25 // lines
)

// component is a running program of the cluster.
type component struct {
	name string
	log  string
	// ended is cancelled when the program has ended, its cause says how.
	ended context.Context
	// kill ends the program. asked says that this was asked for.
	kill  context.CancelFunc
	asked atomic.Bool
}

// launch starts a program inside the sandbox, for as long as the sandbox lives. Its output goes to a log in
// the run folder.
func (c *Cluster) launch(name string, args ...string) (*component, error) {
	p := &component{name: name, log: filepath.Join(c.folder, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	running, kill := context.WithCancel(context.Background())
	p.kill = kill
	command := c.Command(running, c.programs.path(name), args...)
	command.Stdout, command.Stderr = log, log
	// Out of the terminal's session: its Ctrl-C is not for the components.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		kill()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ended, end := context.WithCancelCause(context.Background())
	p.ended = ended
	go func() {
		if err := command.Wait(); err != nil {
			end(fmt.Errorf("ended by itself: %w", err))
		} else {
			end(errors.New("ended by itself, without an error"))
		}
		if !c.stopping.Load() && !p.asked.Load() {
			c.progress.say("%s ended by itself; its log is %s", name, p.log)
		}
	}()
	return p, nil
}

// await returns once check finds the component ready. It fails when the component ends or takes too long,
// and then shows the end of the component's log.
func (c *Cluster) await(ctx context.Context, p *component, check func(context.Context) error) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ended, func() { cancel(context.Cause(p.ended)) })()
	waiting, stop := context.WithTimeoutCause(waiting, readyTime, fmt.Errorf("not ready after %s", readyTime))
	defer stop()
	defer c.progress.during(func() string { return "still waiting for " + p.name })()

	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	for {
		err := check(waiting)
		if err == nil {
			c.progress.say("%s is ready", p.name)
			return nil
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("wait for %s: %w", p.name, context.Cause(ctx))
			}
			return fmt.Errorf("%s: %w (asked whether it is ready: %w); the end of its log %s:\n%s",
				p.name, context.Cause(waiting), err, p.log, tail(p.log))
		}
	}
}

// tail returns the last lines of a log, indented.
func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "\t" + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-tailSize):], "\n\t")
}
