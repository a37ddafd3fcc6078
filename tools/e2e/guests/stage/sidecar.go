package stage

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/process"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Sidecar is one of the project's containers, as the kubelet runs it: its user, its capabilities and a read-only
// /proc/sys. Its file system and its limits are the machine's.
type Sidecar struct {
	Name string
	// Group is what it uses of its limits. nil: it has none.
	Group *cluster.Container

	pod     *podnet.Namespace
	program string
	confine []string // the arguments of setpriv(1)
	env     []string
	kernel  func() error     // makes the kernel look to it as it should
	join    string           // how its shell enters its cgroups
	running *process.Process // nil: not now
	log     sidecarLog
}

// confineInit and confineServer are what the declared patch says of the users and the capabilities. The token's
// group is the pod's fsGroup.
var (
	confineInit   = []string{"--reuid=0", "--regid=0", "--clear-groups", "--bounding-set=-all,+net_admin"}
	confineServer = []string{"--reuid=65532", "--regid=65532", "--groups=" + fmt.Sprint(fsGroup), "--bounding-set=-all"}
)

// A shell first makes what the program shall find read-only, and then becomes setpriv, whose arguments it has.
const (
	confine = `mount -o bind,ro /proc/sys /proc/sys && `
	become  = `exec setpriv --no-new-privs --inh-caps=-all --pdeathsig=KILL "$@"`
)

func (c *Sidecar) command(ctx context.Context, arguments ...string) *exec.Cmd {
	shell := append([]string{"--mount", "--propagation=private", "sh", "-c", confine + c.join + become, "confined"}, c.confine...)
	command := exec.CommandContext(ctx, "unshare", append(append(shell, c.program), arguments...)...)
	command.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, c.env...)
	return command
}

// Start starts it, for the first time or after its end.
func (c *Sidecar) Start() error {
	command := c.command(context.Background())
	command.Stdout, command.Stderr = &c.log, &c.log
	var err error
	if c.running, err = process.StartUnder(c.pod, c.kernel, command); err != nil {
		return fmt.Errorf("starting %s: %w", c.Name, err)
	}
	return nil
}

// Kill ends it by SIGKILL, and returns when it has ended.
func (c *Sidecar) Kill() { c.end(syscall.SIGKILL) }

// Quit ends it by SIGQUIT, at which Go writes to its log what each goroutine is at, and returns when it has ended.
func (c *Sidecar) Quit() { c.end(syscall.SIGQUIT) }

// Stop ends it as the kubelet does when the pod is deleted.
func (c *Sidecar) Stop() error {
	if c.running == nil {
		return nil
	}
	if err := c.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s, told to end: %w", c.Name, err)
	}
	return nil
}

// stopGrace is how long a sidecar may take to end by itself.
const stopGrace = 10 * time.Second

func (c *Sidecar) end(signal syscall.Signal) error {
	running := c.running
	c.running = nil
	if running == nil {
		return nil
	}
	running.Signal(signal)
	select {
	case <-running.Ended():
	case <-time.After(stopGrace):
		running.Signal(syscall.SIGKILL)
	}
	return running.Err()
}

// PID is the number of its process.
func (c *Sidecar) PID() int { return c.running.PID() }

// check says how it ended where nobody had asked for that.
func (c *Sidecar) check() error {
	if c.running == nil {
		return nil
	}
	select {
	case <-c.running.Ended():
		return fmt.Errorf("%s has ended by itself: %w", c.Name, c.running.Err())
	default:
		return nil
	}
}

// Probe is the exec probe: the program once more, with the same confinement and the word probe.
func (c *Sidecar) Probe(ctx context.Context, arguments ...string) error {
	var said bytes.Buffer
	command := c.command(ctx, append([]string{"probe"}, arguments...)...)
	command.Stdout, command.Stderr = &said, &said
	probe, err := process.Start(c.pod, command)
	if err != nil {
		return err
	}
	if err := probe.Err(); err != nil {
		return fmt.Errorf("%s probe: %w: %s", c.Name, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// Log is all that it has written, over all its starts.
func (c *Sidecar) Log() string {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.log.text.String()
}

// AwaitLog returns when it has written a text. What was there before the call, or before its last start, counts.
func (c *Sidecar) AwaitLog(ctx context.Context, text string) error {
	return c.AwaitLogAfter(ctx, 0, text)
}

// AwaitLogAfter is AwaitLog for what comes after a log of that many bytes.
func (c *Sidecar) AwaitLogAfter(ctx context.Context, position int, text string) error {
	for {
		c.log.mu.Lock()
		found, more := strings.Contains(c.log.text.String()[position:], text), c.log.next()
		c.log.mu.Unlock()
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

// sidecarLog collects what a sidecar writes.
type sidecarLog struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed at the next write; nil: nobody waits
}

func (l *sidecarLog) next() <-chan struct{} {
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return l.more
}

func (l *sidecarLog) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(data)
}
