package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// agent wires the pods of its node that ask for it. A pod asks by a socket in its
// volume imds-node, on which imds-server hands over the pod's network namespace.
// Nothing of what a pod hands over or says is trusted, and nothing of one pod is
// waited for by another.
type agent struct {
	log     *slog.Logger
	folder  int // the kubelet's folder of the pods
	net     namespaceID
	user    namespaceID
	watch   *watcher
	status  *status
	metrics *agentMetrics
	// keep wires a pod: the function keep, but in tests of its failures.
	keep func(context.Context, target, func(outcome) bool, func(context.Context))

	// Of the goroutine that reads the events alone.
	report     reporter
	found      map[string]*podFolder // by UID
	starting   map[int]string        // UIDs, by the watch on their folder
	overlooked bool                  // a folder could not be looked at

	running sync.WaitGroup // a goroutine for each pod

	mu    sync.Mutex
	taken map[namespaceID]string // the UID of the pod that has handed it over
}

// The log in all: whatever the pods do, the node's disk is not filled.
const (
	agentLinesAtOnce = 1000
	agentLineEvery   = 100 * time.Millisecond
)

// endWithin is how long the agent waits for its pods' goroutines when it ends.
const endWithin = 2 * time.Second

// runAgent wires the node's pods until the context ends.
func runAgent(ctx context.Context, getenv func(string) string, stderr io.Writer) error {
	folder := getenv("IMDS_PODS_DIR")
	if folder == "" {
		folder = "/var/lib/kubelet/pods"
	}
	bounded := &boundedLog{to: stderr, lines: newAllowance(agentLinesAtOnce, agentLineEvery, time.Now())}
	log := slog.New(slog.NewTextHandler(bounded, nil))
	a, err := newAgent(folder, getenv("IMDS_POD_UID"), getenv("IMDS_STATUS_FILE"), log)
	if err != nil {
		return err
	}
	bounded.leftOut = &a.metrics.leftOut
	if socket := getenv("IMDS_METRICS_SOCKET"); socket != "" {
		stop, err := a.metrics.serve(socket)
		if err != nil { // the VMs are served without
			log.Error("metrics not served", "reason", err)
		} else {
			defer stop()
		}
	}
	detached, err := detachBelow(folder)
	if err != nil {
		log.Error("other pods' volumes can be seen", "reason", err)
	}
	log.Info("starting", "version", buildVersion(), "pods", folder, "detached", detached)
	err = a.run(ctx)
	log.Info("stopped; the wiring stays")
	return err
}

func newAgent(folder, own, statusFile string, log *slog.Logger) (a *agent, err error) {
	a = &agent{log: log, report: reporter{log: log, now: time.Now}, keep: keep, found: map[string]*podFolder{}, starting: map[int]string{}, taken: map[namespaceID]string{}}
	a.status = &status{file: statusFile, report: reporter{log: log, now: time.Now}, pods: map[string]progress{}}
	a.metrics = &agentMetrics{agent: a}
	if a.net, err = namespaceAt("/proc/thread-self/ns/net"); err != nil {
		return nil, err
	}
	if a.user, err = namespaceAt("/proc/thread-self/ns/user"); err != nil {
		return nil, err
	}
	if err := mayEnter(); err != nil {
		return nil, fmt.Errorf("enter a network namespace: %w; give the container the capability SYS_ADMIN", err)
	}
	if a.folder, err = unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("IMDS_PODS_DIR %q: %w; give the folder in which this node's kubelet has its pods", folder, err)
	}
	if own != "" && !hasFolder(a.folder, own) {
		unix.Close(a.folder)
		return nil, fmt.Errorf("IMDS_PODS_DIR %q has no folder of this pod, %s: it is not where this node's kubelet has its pods; give the DaemonSet's hostPath the kubelet's folder", folder, own)
	}
	if a.watch, err = newWatcher(); err != nil {
		unix.Close(a.folder)
		return nil, err
	}
	return a, nil
}

// run ends with the context, or where the folder of the pods can no longer be followed.
func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	err := a.follow(ctx)
	cancel()
	ended := make(chan struct{})
	go func() { a.running.Wait(); close(ended) }()
	select {
	case <-ended:
		a.watch.inotify.Close()
		unix.Close(a.folder)
	case <-time.After(endWithin): // what still runs may use them
		a.log.Warn("a pod's goroutine hangs")
	}
	return err
}

// take notes that a pod has handed over a network namespace, which no other pod may
// do until it is given back.
func (a *agent) take(id namespaceID, uid string) (giveBack func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if other, taken := a.taken[id]; taken {
		return nil, fmt.Errorf("the pod with the UID %s has handed over the same network namespace", other)
	}
	a.taken[id] = uid
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.taken, id)
	}, nil
}

// boundedLog writes lines as long as there is an allowance for them.
type boundedLog struct {
	to      io.Writer
	lines   *allowance
	leftOut *atomic.Int64 // nil: not counted
}

func (b *boundedLog) Write(line []byte) (int, error) {
	if !b.lines.take(time.Now()) {
		if b.leftOut != nil {
			b.leftOut.Add(1)
		}
		return len(line), nil
	}
	if b.lines.refused > 0 {
		fmt.Fprintf(b.to, "level=WARN msg=\"lines left out\" lines=%d\n", b.lines.refused)
		b.lines.refused = 0
	}
	return b.to.Write(line)
}

// wait returns when it may happen, or the context has ended.
func (a *allowance) wait(ctx context.Context) {
	for ctx.Err() == nil && !a.take(time.Now()) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(a.since.Add(a.every))):
		}
	}
}

// mayEnter says why the process cannot enter another network namespace, or nil. It
// enters its own, for which the kernel asks the same of it.
func mayEnter() error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
}
