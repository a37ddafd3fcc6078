// Command demo runs the whole of KubeVirt IMDS on one machine in a few seconds,
// without a cluster: the real webhook patches a virt-launcher pod, the sidecars
// that the patched pod names run as the kubelet would run them, in a pod
// network as KubeVirt wires it, and a guest asks for its identity and its
// token. Then a neighbour on the network tries to.
//
// It runs twice: the first process builds the three binaries; the second, in
// namespaces of its own, does everything else and takes all of it along when it
// ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// The exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnavailable = 3
)

// run returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "demo: %v\nRun it with -help to see what it takes.\n", err)
		return exitUsage
	}
	if h, ok := receiveHandover(getenv); ok {
		return runInside(ctx, o, h, stdout, stderr)
	}
	return prepare(ctx, o, stdout, stderr)
}
