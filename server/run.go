package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime/debug"

	"github.com/example/kubevirt-imds/server/internal/config"
	"github.com/example/kubevirt-imds/server/internal/probe"
)

// Exit statuses, as the manual names them.
const (
	exitSuccess = 0
	exitFailure = 1
	exitUsage   = 2
)

// run is the whole program: it returns the exit status.
func run(ctx context.Context, args []string, lookupEnv config.Lookup, stdout, stderr io.Writer) int {
	options := newFlagSet("imds-server")
	showVersion := options.Bool("version", false, "")
	if err := options.Parse(args); err != nil {
		return parseFailure(err, stdout, stderr)
	}
	if *showVersion {
		fmt.Fprintln(stdout, "imds-server", buildVersion())
		return exitSuccess
	}

	command, rest := "serve", options.Args()
	if len(rest) > 0 {
		command, rest = rest[0], rest[1:]
	}
	switch command {
	case "serve", "agent-metrics":
		if len(rest) > 0 {
			return usageError(stderr, "%s takes no arguments, got %q", command, rest)
		}
		start := runServe
		if command == "agent-metrics" {
			start = runAgentMetrics
		}
		return exitStatus(start(ctx, lookupEnv, stderr), stderr)
	case "probe":
		options := newFlagSet("imds-server probe")
		live := options.Bool("live", false, "")
		if err := options.Parse(rest); err != nil {
			return parseFailure(err, stdout, stderr)
		}
		if options.NArg() > 0 {
			return usageError(stderr, "probe takes no arguments but -live, got %q", options.Args())
		}
		return exitStatus(runProbe(ctx, lookupEnv, *live), stderr)
	default:
		return usageError(stderr, "no command %q, use serve, probe or agent-metrics", command)
	}
}

func runServe(ctx context.Context, lookupEnv config.Lookup, stderr io.Writer) error {
	settings, err := config.FromEnvironment(lookupEnv)
	if err != nil {
		return err
	}
	if err := forbidCoreDumps(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	log.Info("starting", "version", buildVersion())
	return serve(ctx, settings, log)
}

func runAgentMetrics(ctx context.Context, lookupEnv config.Lookup, stderr io.Writer) error {
	settings, err := config.AgentMetricsFromEnvironment(lookupEnv)
	if err != nil {
		return err
	}
	return serveAgentMetrics(ctx, settings, slog.New(slog.NewTextHandler(stderr, nil)))
}

func runProbe(ctx context.Context, lookupEnv config.Lookup, live bool) error {
	listen, err := config.ListenFromEnvironment(lookupEnv)
	if err != nil {
		return err
	}
	served := listen.Served()[0]
	address := listen.Dial()
	return probe.Check(ctx, probe.Server{
		Address: netip.AddrPortFrom(address.Addr(), served.Port()),
		Listens: address,
		Host:    served,
		Source:  listen.ProbeSource(),
	}, live)
}

// newFlagSet returns a set of options that prints nothing by itself.
func newFlagSet(name string) *flag.FlagSet {
	options := flag.NewFlagSet(name, flag.ContinueOnError)
	options.SetOutput(io.Discard)
	return options
}

// parseFailure ends a run whose options were not parsed: they are wrong, or they
// ask for the manual.
func parseFailure(err error, stdout, stderr io.Writer) int {
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return exitSuccess
	}
	return usageError(stderr, "%v", err)
}

func usageError(stderr io.Writer, format string, args ...any) int {
	fmt.Fprintf(stderr, "imds-server: "+format+"; see imds-server --help\n", args...)
	return exitUsage
}

func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return exitSuccess
	}
	fmt.Fprintf(stderr, "imds-server: %v\n", err)
	return exitFailure
}

// buildVersion is the version that the build set, or else what the Go tool
// recorded.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
