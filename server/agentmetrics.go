package main

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/server/internal/config"
	"github.com/example/kubevirt-imds/server/internal/conns"
)

// The bounds of the server of the agent's metrics: a neighbour of the node may ask all
// day.
const (
	scrapeWithin = 2 * time.Second
	scrapeHeader = 2 << 10 // bytes
	scrapeBody   = 1 << 20 // bytes, many times what the agent tells
	askEvery     = time.Second
)

// serveAgentMetrics answers GET /metrics with what the agent tells, until ctx ends or a
// signal comes: the agent has the capabilities to enter each pod, and speaks no HTTP.
func serveAgentMetrics(ctx context.Context, settings config.AgentMetrics, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listener, err := net.Listen("tcp", settings.Address)
	if err != nil {
		return fmt.Errorf("IMDS_METRICS_ADDRESS: %w", err)
	}
	log.Info("agent's metrics served", "address", listener.Addr())
	// No connection is a probe's; the one that has waited longest makes room.
	limit := conns.NewLimit(netip.Addr{}, func(net.Addr, string) {})
	server := newMetricsServer(settings.Socket, limit)
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(limit.Listener(listener)); ctx.Err() == nil {
		return err
	}
	return nil
}

func newMetricsServer(socket string, limit *conns.Limit) *http.Server {
	told := &toldMetrics{socket: socket}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		text, err := told.get()
		if err != nil { // so that Prometheus' own metric up is 0
			http.Error(w, "no word from the agent: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Write(text)
	})
	server := &http.Server{
		Handler:        routes,
		ReadTimeout:    scrapeWithin,
		WriteTimeout:   2 * scrapeWithin,
		MaxHeaderBytes: scrapeHeader,
		ErrorLog:       stdlog.New(io.Discard, "", 0),
		ConnState:      limit.Track,
	}
	server.SetKeepAlivesEnabled(false)
	return server
}

// toldMetrics is what the agent has told last. However often somebody asks, the agent
// is asked once in askEvery.
type toldMetrics struct {
	socket string

	mu   sync.Mutex
	at   time.Time
	text []byte
	err  error
}

func (m *toldMetrics) get() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) >= askEvery {
		m.text, m.err = askAgent(m.socket)
		m.at = time.Now()
	}
	return m.text, m.err
}

// askAgent returns what the agent says on its socket.
func askAgent(socket string) ([]byte, error) {
	conn, err := net.DialTimeout("unix", socket, scrapeWithin)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(scrapeWithin))
	text, err := io.ReadAll(io.LimitReader(conn, scrapeBody+1))
	if len(text) > scrapeBody {
		return nil, fmt.Errorf("%s tells more than %d bytes: is it the agent's?", socket, scrapeBody)
	}
	return text, err
}
