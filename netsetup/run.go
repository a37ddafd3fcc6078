package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
)

const usage = `imds-init gives the guest of a KubeVirt virtual machine a path to the metadata
service at 169.254.169.254, and keeps it alive. It runs in the pod's network
namespace and needs no capability but NET_ADMIN.

usage: imds-init [init] [--once]   wire, then wire again at every change of the
                                   pod's network, until SIGTERM; with --once:
                                   wire for the bridge that is there, then exit
       imds-init --version

Ending, it leaves the wiring in place.

environment:
  IMDS_BRIDGE_NAME   the VM's bridge; empty: the pod network's, otherwise the
                     first k6t-* bridge with a guest
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

// run is the program: its status is the process's.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	flags := flag.NewFlagSet("imds-init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	once := flags.Bool("once", false, "")
	showVersion := flags.Bool("version", false, "")

	if len(args) > 0 && args[0] == "init" {
		args = args[1:]
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
	bridgeName := getenv("IMDS_BRIDGE_NAME")
	if err := validInterfaceName(bridgeName); err != nil {
		fmt.Fprintf(stderr, "imds-init: IMDS_BRIDGE_NAME %q %v\n", bridgeName, err)
		return exitFailed
	}

	if !*once {
		keepWired(ctx, bridgeName, log)
	} else if err := wireOnce(bridgeName, log); err != nil {
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

// maxInterfaceName is IFNAMSIZ without the final zero, in bytes.
const maxInterfaceName = 15

// validInterfaceName judges as the kernel does (dev_valid_name in
// net/core/dev.c), but allows the empty name.
func validInterfaceName(name string) error {
	switch {
	case len(name) > maxInterfaceName:
		return fmt.Errorf("is longer than %d bytes; give the name of the VM's bridge in the pod, such as k6t-eth0", maxInterfaceName)
	case name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r"):
		return errors.New("is no interface name; give the name of the VM's bridge in the pod, such as k6t-eth0")
	}
	return nil
}
