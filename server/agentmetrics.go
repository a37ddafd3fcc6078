package main

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/server/internal/config"
)

// The bounds of the server of the agent's metrics: a neighbour of the node may ask all
// day.
const (
	scrapesAtOnce = 8
	scrapeWithin  = 2 * time.Second
	scrapeHeader  = 2 << 10 // bytes
	scrapeBody    = 1 << 20 // bytes, many times what the agent tells
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
	server := newMetricsServer(settings.Socket)
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

func newMetricsServer(socket string) *http.Server {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		text, err := askAgent(socket)
		if err != nil { // so that Prometheus' own metric up is 0
			http.Error(w, "no word from the agent: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Write(text)
	})
	var open atomic.Int32
	server := &http.Server{
		Handler:        routes,
		ReadTimeout:    scrapeWithin,
		WriteTimeout:   2 * scrapeWithin,
		MaxHeaderBytes: scrapeHeader,
		ErrorLog:       stdlog.New(io.Discard, "", 0),
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
	return server
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
