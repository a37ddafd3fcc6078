package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Why a pod has its state: one of a fixed set, and no text of the pod's.
const (
	inPart         = "in_part"   // wired, but some of its guests miss something
	forServer      = "server"    // waiting: imds-server does not listen
	forGuest       = "guest"     // waiting: the endpoint is there
	bySocket       = "socket"    // failed: it cannot be watched for or connected to
	byMessage      = "message"   // failed: it is none that is understood
	byNamespace    = "namespace" // failed: it is none that the agent takes
	byWiring       = "wiring"    // failed: see the log
	byFaultOfAgent = "fault"     // failed: a panic
)

// classes are all that there are.
var classes = map[string][]string{
	stateWired:   {"", inPart},
	stateWaiting: {forServer, forGuest},
	stateFailed:  {bySocket, byMessage, byNamespace, byWiring, byFaultOfAgent},
}

// agentMetrics is what the agent tells Prometheus, if anything: whoever reaches the
// node's network can read it. The text is written here, since the smallest library
// for it brings net/http along: a third of imds-init, which each VM's pod may have.
type agentMetrics struct {
	agent      *agent
	repairs    atomic.Int64
	leftOut    atomic.Int64
	reconciles histogram
}

// histogram counts durations.
type histogram struct {
	mu      sync.Mutex
	buckets [len(reconcileBounds) + 1]int64 // the last one is for those beyond all bounds
	sum     float64
}

// reconcileBounds are in seconds.
var reconcileBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5}

func (h *histogram) add(took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	bucket, _ := slices.BinarySearch(reconcileBounds[:], took.Seconds())
	h.buckets[bucket]++
	h.sum += took.Seconds()
}

func (h *histogram) write(w io.Writer, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintf(w, "# TYPE %s histogram\n", name)
	count := int64(0)
	for i, bound := range reconcileBounds {
		count += h.buckets[i]
		fmt.Fprintf(w, "%s_bucket{le=\"%g\"} %d\n", name, bound, count)
	}
	count += h.buckets[len(reconcileBounds)]
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %g\n%s_count %d\n", name, count, name, h.sum, name, count)
}

// write writes them in Prometheus' text format, version 0.0.4.
func (m *agentMetrics) write(w io.Writer) {
	fmt.Fprintf(w, "# TYPE imds_agent_info gauge\nimds_agent_info{version=%q} 1\n", buildVersion())
	fmt.Fprintln(w, "# TYPE imds_agent_pods gauge")
	for _, state := range slices.Sorted(maps.Keys(classes)) {
		for _, class := range classes[state] {
			fmt.Fprintf(w, "imds_agent_pods{state=%q,reason=%q} %d\n", state, class, m.agent.status.of(state, class))
		}
	}
	m.agent.mu.Lock()
	connected := len(m.agent.taken)
	m.agent.mu.Unlock()
	fmt.Fprintf(w, "# TYPE imds_agent_connected_pods gauge\nimds_agent_connected_pods %d\n", connected)
	fmt.Fprintf(w, "# TYPE imds_agent_repairs_total counter\nimds_agent_repairs_total %d\n", m.repairs.Load())
	fmt.Fprintf(w, "# TYPE imds_agent_log_lines_left_out_total counter\nimds_agent_log_lines_left_out_total %d\n", m.leftOut.Load())
	m.reconciles.write(w, "imds_agent_reconcile_duration_seconds")
}

// tellWithin is how long one reader of the metrics may hold up the next.
const tellWithin = 2 * time.Second

// serve writes them to whoever connects to a Unix socket, one after the other, until
// stop is called. It is "imds-server agent-metrics" that speaks HTTP, without the
// agent's capabilities.
func (m *agentMetrics) serve(socket string) (stop func(), err error) {
	// Of an agent that was killed.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	// For another user in another container of this pod: nobody else has the volume.
	if err := os.Chmod(socket, 0o666); err != nil {
		listener.Close()
		return nil, err
	}
	go func() {
		for {
			reader, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil { // such as no descriptor left
				time.Sleep(tellWithin)
				continue
			}
			var text strings.Builder
			m.write(&text)
			reader.SetWriteDeadline(time.Now().Add(tellWithin))
			io.WriteString(reader, text.String())
			reader.Close()
		}
	}()
	return func() { listener.Close() }, nil
}
