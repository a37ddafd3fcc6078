package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
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
// node's network can read it.
type agentMetrics struct {
	set        *metrics.Set
	repairs    *metrics.Counter
	reconciles *metrics.PrometheusHistogram
	leftOut    *metrics.Counter
}

func newAgentMetrics(a *agent) agentMetrics {
	metrics.ExposeMetadata(true)
	set := metrics.NewSet()
	set.NewGauge(fmt.Sprintf("imds_agent_info{version=%q}", buildVersion()), func() float64 { return 1 })
	for state, reasons := range classes {
		for _, class := range reasons {
			set.NewGauge(fmt.Sprintf("imds_agent_pods{state=%q,reason=%q}", state, class), func() float64 {
				return float64(a.status.of(state, class))
			})
		}
	}
	set.NewGauge("imds_agent_connected_pods", func() float64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return float64(len(a.taken))
	})
	return agentMetrics{
		set:        set,
		repairs:    set.NewCounter("imds_agent_repairs_total"),
		reconciles: set.NewPrometheusHistogramExt("imds_agent_reconcile_duration_seconds", []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5}),
		leftOut:    set.NewCounter("imds_agent_log_lines_left_out_total"),
	}
}

// The bounds of the server of the metrics: a neighbour of the node may ask all day.
const (
	scrapesAtOnce = 8
	scrapeWithin  = 2 * time.Second
	scrapeHeader  = 2 << 10 // bytes
)

// serve answers GET /metrics at the address until stop is called.
func (m agentMetrics) serve(address string) (at net.Addr, stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		m.set.WritePrometheus(w)
	})
	var open atomic.Int32
	server := &http.Server{
		Handler:        routes,
		ReadTimeout:    scrapeWithin,
		WriteTimeout:   2 * scrapeWithin,
		MaxHeaderBytes: scrapeHeader,
		ErrorLog:       log.New(io.Discard, "", 0),
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > scrapesAtOnce {
					conn.Close()
				}
			case http.StateClosed:
				open.Add(-1)
			}
		},
	}
	server.SetKeepAlivesEnabled(false)
	go server.Serve(listener)
	return listener.Addr(), func() { server.Close() }, nil
}
