package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// How often a pod may have something done, in a burst and then: nobody else is slowed
// by one that asks all day.
const (
	looksAtOnce, lookEvery             = 20, 200 * time.Millisecond // for its socket
	connectionsAtOnce, connectionEvery = 5, 10 * time.Second
	reconcilesAtOnce, reconcileEvery   = 20, 500 * time.Millisecond
)

const (
	// mostConnectionEvery is how seldom a pod becomes that ends its connections.
	mostConnectionEvery = 5 * time.Minute
	// A reconcile that takes more CPU than dearReconcile, since the pod's network is full
	// of what has to be read, is followed by a rest of restTimes as long.
	dearReconcile = 50 * time.Millisecond
	restTimes     = 9
)

const (
	// dialAgain is when a socket is tried again that is there, but fails.
	dialAgain = 5 * time.Second
	// speakWithin bounds the wait for a pod's message, and for its taking ours.
	speakWithin = 5 * time.Second
	// maxReason bounds a reason, in bytes.
	maxReason = 512
)

// The states of a pod, as the agent tells them to imds-server.
const (
	stateWaiting = "waiting"
	stateWired   = "wired"
	stateFailed  = "failed"
)

// progress is how far a pod is, and why no further.
type progress struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
	class  string // of the reason, for the metrics
}

// podWiring wires a pod as long as its folder is there.
type podWiring struct {
	agent  *agent
	uid    string
	report reporter
	state  progress
	conn   *net.UnixConn // nil: none

	ended bool          // its volume is gone, though its folder is not
	rest  time.Time     // no reconcile before
	used  time.Duration // of CPU, by its thread

	looks, connections, reconciles *allowance
}

func newPodWiring(a *agent, uid string) *podWiring {
	now := time.Now()
	return &podWiring{
		agent: a, uid: uid,
		report:      reporter{log: a.log.With("uid", uid), now: time.Now},
		looks:       newAllowance(looksAtOnce, lookEvery, now),
		connections: newAllowance(connectionsAtOnce, connectionEvery, now),
		reconciles:  newAllowance(reconcilesAtOnce, reconcileEvery, now),
	}
}

// run wires the pod for each connection to its server, until the context ends.
func (p *podWiring) run(ctx context.Context) {
	defer p.agent.status.set(p.uid, nil)
	for ctx.Err() == nil && !p.ended {
		p.connections.wait(ctx)
		began := time.Now()
		if err := p.serve(ctx); err != nil {
			p.report.tellOf("not served", err)
		}
		// A connection that the pod does not take stays charged to the agent.
		if time.Since(began) > mostConnectionEvery {
			p.connections.every = connectionEvery
		} else if p.connections.left == 0 {
			p.connections.every = min(2*p.connections.every, mostConnectionEvery)
		}
	}
}

// connect returns a connection to the pod's server as soon as that listens; nil where
// the context ends.
func (p *podWiring) connect(ctx context.Context) *net.UnixConn {
	for {
		p.looks.wait(ctx)
		if ctx.Err() != nil {
			return nil
		}
		arrived := make(chan struct{}, 1)
		watch, watchErr := p.watchSocket(arrived)
		conn, err := p.dial()
		if err == nil {
			p.agent.watch.remove(watch)
			return conn
		}
		var again <-chan time.Time
		switch {
		case errors.Is(watchErr, fs.ErrNotExist):
			p.ended = true // the kubelet gives no pod a volume again
			return nil
		case watchErr != nil || errors.Is(err, unix.EAGAIN):
			again = time.After(dialAgain)
			p.become(progress{stateFailed, errors.Join(watchErr, err).Error(), bySocket})
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
			p.become(progress{stateWaiting, "imds-server does not listen on its socket yet", forServer})
		default:
			p.become(progress{stateFailed, err.Error(), bySocket})
		}
		select {
		case <-ctx.Done():
		case <-arrived:
		case <-again:
		}
		p.agent.watch.remove(watch)
	}
}

// watchSocket has the channel get a value when something is renamed in the folder of
// the pod's socket. The pod's containers write there: they get one event and no more.
func (p *podWiring) watchSocket(arrived chan<- struct{}) (int, error) {
	folder, err := openBeneath(p.agent.folder, p.uid+"/"+nodeFolder, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return 0, fmt.Errorf("the folder of the pod's volume imds-node: %w", err)
	}
	defer unix.Close(folder)
	return p.agent.watch.add(folder, unix.IN_MOVED_TO|unix.IN_ONESHOT, arrived)
}

// dial connects to the socket that is there, whatever takes its name meanwhile.
func (p *podWiring) dial() (*net.UnixConn, error) {
	socket, err := openBeneath(p.agent.folder, p.uid+"/"+nodeSocket, unix.O_PATH)
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("there is a symbolic link in the path of the pod's socket")
	}
	if err != nil {
		return nil, fmt.Errorf("open the pod's socket: %w", err)
	}
	defer unix.Close(socket)
	var stat unix.Stat_t
	if err := unix.Fstat(socket, &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("the file in the place of the pod's socket is not a socket")
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: descriptor(socket)})
	if err != nil {
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			err = errno // the path in it is of no use
		}
		return nil, fmt.Errorf("connect to the pod's socket: %w", err)
	}
	return conn, nil
}

// serve wires the pod until its connection or the context ends. The error says why it
// is not wired.
func (p *podWiring) serve(ctx context.Context) (err error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	handed, class := handed{network: -1}, byMessage
	defer func() {
		if what := recover(); what != nil {
			err = p.panicked(what)
		}
		if errors.Is(err, errFault) {
			class = byFaultOfAgent
		}
		if err != nil {
			p.become(progress{stateFailed, err.Error(), class})
		}
		letGo(func() {
			if p.conn != nil {
				p.conn.Close()
				p.conn = nil
			}
			handed.close()
		})
	}()
	conn := p.connect(ctx)
	if conn == nil {
		return nil
	}
	p.conn, p.state, p.report.last = conn, progress{}, ""
	conn.SetReadDeadline(time.Now().Add(speakWithin))
	context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })

	if handed, err = receive(conn); err != nil {
		return err
	}
	class = byNamespace
	id, err := p.agent.check(handed.network)
	if err != nil {
		return err
	}
	giveBack, err := p.agent.take(id, p.uid)
	if err != nil {
		return err
	}
	defer giveBack()
	p.report.log = p.agent.log.With("uid", p.uid, "namespace", handed.Namespace, "pod", handed.Pod, "vm", handed.VM)

	p.agent.running.Go(func() { p.endWithVolume(ctx, end) })
	conn.SetReadDeadline(time.Time{})
	if ctx.Err() != nil { // before or after this, never during
		return nil
	}
	wiring := p.onOwnThread(func() error {
		defer end()
		if err := unix.Setns(handed.network, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the pod's network namespace: %w", err)
		}
		handed.close()
		p.reconciles.wait(ctx)
		p.used = threadTime()
		p.agent.keep(ctx, handed.target, p.tell, func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(p.rest)):
			}
			p.reconciles.wait(ctx)
		})
		return nil
	})
	says := saysMore(conn) // until its end
	end()
	if err := <-wiring; err != nil {
		return err
	}
	if says {
		class = byMessage
		return errors.New("the pod sent more after its message")
	}
	letGo(func() { conn.Close() })
	p.conn = nil // there is nobody to tell
	p.become(progress{stateWaiting, "the connection to imds-server has ended", forServer})
	p.report.write(slog.LevelInfo, "let go; the wiring stays")
	return nil
}

// tell reports what came of a reconcile.
func (p *podWiring) tell(o outcome) (owed bool) {
	o.missing = nil // the node's, and not this pod's
	now := threadTime()
	if spent := now - p.used; spent > dearReconcile {
		p.rest = time.Now().Add(restTimes * spent)
	}
	p.used = now
	owed = p.report.tell(o)
	m := p.agent.metrics
	if o.took > 0 { // there was one
		m.reconciles.add(o.took)
	}
	if o.changed && o.err == nil && p.state.State == stateWired {
		m.repairs.Add(1)
	}
	switch {
	case o.err != nil:
		p.become(progress{stateFailed, o.err.Error(), byWiring})
	case !served(o.wiring):
		p.become(progress{stateWaiting, o.wiring.Waiting, forGuest})
	case o.lesser != nil:
		p.become(progress{stateWired, o.lesser.Error(), inPart})
	default:
		p.become(progress{stateWired, "", ""})
	}
	return owed
}

// become notes a state, and tells it to the pod's server.
func (p *podWiring) become(state progress) {
	state.Reason = state.Reason[:min(len(state.Reason), maxReason)]
	if state == p.state {
		return
	}
	p.state = state
	p.agent.status.set(p.uid, &state)
	if p.conn == nil {
		if state.State == stateFailed {
			p.report.tellOf("not served", errors.New(state.Reason))
		}
		return
	}
	line, _ := json.Marshal(state) // texts alone: it cannot fail
	p.conn.SetWriteDeadline(time.Now().Add(speakWithin))
	if _, err := p.conn.Write(append(line, '\n')); err != nil {
		p.conn.SetReadDeadline(time.Now()) // it is dead, or takes nothing: serve closes it
	}
}

// onOwnThread runs f on a thread that ends with it, since it enters a namespace. A
// panic in f is an error.
func (p *podWiring) onOwnThread(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime never ends the main thread, and /proc/self is its own: it
			// waits while another does the work.
			done <- <-p.onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		var err error
		defer func() {
			if what := recover(); what != nil {
				err = p.panicked(what)
			}
			done <- err
		}()
		err = f()
	}()
	return done
}

var errFault = errors.New("a fault of the agent")

// panicked logs the place of a panic, and makes it an error.
func (p *podWiring) panicked(what any) error {
	p.report.write(slog.LevelError, "panic", "what", what, "stack", string(debug.Stack()))
	return fmt.Errorf("%w, please report it: %v", errFault, what)
}
