package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
)

const usage = `imds-init gives the guest of a KubeVirt virtual machine a path to the metadata
service at 169.254.169.254 and, where the pod has IPv6, at fe80::a9fe:a9fe, and
keeps it alive. It runs in the pod's network namespace and needs no capability
but NET_ADMIN.

usage: imds-init [init] [--once]   wire, then wire again at every change of the
                                   pod's network, until SIGTERM; with --once:
                                   wire for what is there, then exit
       imds-init agent             wire the pods of this node that ask for it by
                                   a socket, without access to the API, until
                                   SIGTERM; it needs SYS_ADMIN too, and the
                                   node's own network namespace (hostNetwork)
       imds-init status            print what the agent writes to IMDS_STATUS_FILE
       imds-init check             print what this node's kernel has and lacks;
                                   the exit status is 1 where some VM, on a bridge
                                   or of passt, cannot be served
       imds-init --version

Ending, it leaves the wiring in place.

environment:
  IMDS_BRIDGE_NAME   the VM's bridge; empty: the preferred one or the pod
                     network's, otherwise the first k6t-* bridge with a guest
  IMDS_PREFERRED_BRIDGE
                     the bridge to take of several; others serve while it is not
                     there
  IMDS_NETWORK       the network that the VM's owner has named; with it, or with a
                     bridge name, questions by the VM's other NICs are left to
                     their networks, and otherwise led to the endpoint
  IMDS_REDIRECT_PORT the server's port, 1024 to 65535, where the VM's pod network
                     is bound by passt: questions from inside the pod are
                     redirected to it, and no bridge is joined; empty: a bridge

environment of the agent, which takes the above from each pod's imds-server:
  IMDS_PODS_DIR      the kubelet's folder of its pods (default
                     /var/lib/kubelet/pods)
  IMDS_POD_UID       the agent's own pod, whose folder has to be there; empty: no
                     matter
  IMDS_STATUS_FILE   where to write how many pods are wired, waiting and failed,
                     by reason, as JSON; empty: nowhere
  IMDS_METRICS_SOCKET
                     the Unix socket on which to tell the metrics, which imds-server
                     agent-metrics serves to Prometheus; empty: none
`

// version is set by the build with -ldflags "-X main.version=v1.2.3".
var version string

// Exit statuses. A usage error is told apart so that scripts see their own
// mistakes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// gcPercent is half of Go's default. A reconcile leaves half a megabyte of netlink messages
// behind, and by default the collector waits for four: with this, imds-init in a pod takes
// 2 MB less, and the agent a fifth less for each pod. No time for it could be measured.
const gcPercent = 50

// run is the program: its status is the process's.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	debug.SetGCPercent(gcPercent)
	log := slog.New(slog.NewTextHandler(stderr, nil))
	flags := flag.NewFlagSet("imds-init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	once := flags.Bool("once", false, "")
	showVersion := flags.Bool("version", false, "")

	command := "init"
	if len(args) > 0 && slices.Contains([]string{"init", "check", "agent", "status"}, args[0]) {
		command, args = args[0], args[1:]
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "imds-init: unknown argument %q; run imds-init --help\n", flags.Arg(0))
		return exitUsage
	}
	if *showVersion {
		fmt.Fprintln(stdout, "imds-init", buildVersion())
		return exitOK
	}
	if command == "check" {
		if *once {
			fmt.Fprintln(stderr, "imds-init: check takes no option; run imds-init --help")
			return exitUsage
		}
		return check(stdout)
	}
	if command == "status" {
		content, err := os.ReadFile(getenv("IMDS_STATUS_FILE"))
		if err != nil {
			fmt.Fprintf(stderr, "imds-init: IMDS_STATUS_FILE: %v; run it in a container of the agent, whose file it is\n", err)
			return exitFailed
		}
		stdout.Write(content)
		return exitOK
	}
	if command == "agent" {
		if err := runAgent(ctx, getenv, stderr); err != nil {
			fmt.Fprintf(stderr, "imds-init: %v\n", err)
			return exitFailed
		}
		return exitOK
	}
	to, err := targetFromEnvironment(getenv)
	if err != nil {
		fmt.Fprintf(stderr, "imds-init: %v\n", err)
		return exitFailed
	}

	if !*once {
		keepWired(ctx, to, log)
	} else if err := wireOnce(to, log); err != nil {
		fmt.Fprintf(stderr, "imds-init: %v\n", err)
		return exitFailed
	}
	return exitOK
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
