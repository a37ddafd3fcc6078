package main

import (
	"context"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/server/internal/api"
	"github.com/example/kubevirt-imds/server/internal/config"
	"github.com/example/kubevirt-imds/server/internal/conns"
	"github.com/example/kubevirt-imds/server/internal/listen"
	"github.com/example/kubevirt-imds/server/internal/node"
	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/token"
)

// drainTime is how long the requests in flight may take after a signal.
const drainTime = 5 * time.Second

// serve answers until ctx ends or a signal comes, then drains. It returns an
// error only if it cannot listen.
func serve(ctx context.Context, settings config.Config, log *slog.Logger) error {
	ctx, stopSignals := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stopSignals()

	tokens := token.NewSource(settings.TokenPath, time.Now, log)
	tokens.Default() // the log shall say at once whether there is a token

	agent := handOver(ctx, settings, log)

	refused := refusals.NewLog(log, time.Now)
	handler := api.NewHandler(api.Settings{
		Listen:        settings.Listen.Addrs,
		RequireHeader: settings.RequireHeader,
		Identity:      api.Identity(settings.Identity),
		Agent:         agent,
	}, tokens, refused)
	limit := conns.NewLimit(settings.Listen.ProbeSource(), func(remote net.Addr, detail string) {
		refused.Add("connection-limit", "remote", remote, "detail", detail)
	})
	server := newHTTPServer(handler, limit)

	err := listen.FollowAll(ctx, sockets(settings.Listen), log, func(listener net.Listener) error {
		return server.Serve(limit.Listener(listener))
	})
	if err != nil {
		return err
	}
	stopSignals() // from here a signal has its default effect: it ends the process
	drain(server, log)
	return nil
}

// handOver offers the pod to the agent of the node until ctx ends, nil where another
// wires it.
func handOver(ctx context.Context, settings config.Config, log *slog.Logger) *node.Agent {
	if settings.Node.Socket == "" {
		return nil
	}
	agent := node.NewAgent(log)
	go agent.Serve(ctx, settings.Node.Socket, node.Pod{
		BridgeName:      settings.Node.BridgeName,
		PreferredBridge: settings.Node.PreferredBridge,
		Network:         settings.Node.Network,
		RedirectPort:    settings.Listen.RedirectPort,
		Namespace:       settings.Identity.Namespace,
		PodName:         settings.Identity.PodName,
		VMName:          settings.Identity.VMName,
	})
	return agent
}

// sockets are what the server listens on.
func sockets(l config.Listen) []listen.Socket {
	var all []listen.Socket
	for _, addr := range l.Served() {
		socket := listen.Socket{Addr: l.Bind(addr), Device: l.Device, HopLimit: l.HopLimit}
		if l.RedirectPort != 0 {
			socket.Hold = addr
		}
		all = append(all, socket)
	}
	return all
}

// drain lets the requests in flight finish, for at most drainTime.
func drain(server *http.Server, log *slog.Logger) {
	log.Info("draining", "timeout", drainTime)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		server.Close()
	}
	log.Info("stopped")
}

// newHTTPServer returns the server with every bound that keeps a hostile guest
// from taking more than its share of memory or time.
func newHTTPServer(handler http.Handler, limit *conns.Limit) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:   handler,
		Protocols: protocols,
		ConnState: limit.Track,

		// An honest request has a few hundred bytes and arrives in one segment.
		// net/http adds 4 KiB to this bound.
		MaxHeaderBytes:    4 << 10,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       30 * time.Second,

		// "OPTIONS *" is refused by the guard like any other OPTIONS.
		DisableGeneralOptionsHandler: true,
		// What net/http logs, the guest can cause at will.
		ErrorLog: stdlog.New(io.Discard, "", 0),
	}
}
