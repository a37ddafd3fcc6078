// Command e2e starts a real Kubernetes on this machine, without Docker: etcd, control plane, kubelet, kube-proxy and
// containerd, built from Go modules, in private namespaces. The tests in the folders checks and guests use the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

const usage = `usage: go run . build                             compile Kubernetes and containerd; once, some minutes
       go run . cluster -- COMMAND [ARGUMENT...]   start a cluster, run the command in it, stop it

The command of cluster runs on the cluster's node, in its namespaces: kubectl and ctr are in its PATH, KUBECONFIG
is set, services have their addresses. "cluster -- bash" is a shell to look around.
What starts a cluster needs root, and the programs runc and nft. The build is kept in the user's cache folder;
nothing else stays on the machine but, after a failure, a folder of logs, whose path is shown.
`

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if err == flag.ErrHelp {
		os.Exit(2)
	}
	if exit, ok := err.(*exec.ExitError); ok && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	os.Exit(1)
}

// run does what the arguments say. The error is flag.ErrHelp after a usage text, and a plain *exec.ExitError
// when it is the command inside the cluster that failed.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "build":
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		programs, err := cluster.Build(ctx, stderr)
		if err == nil {
			fmt.Fprintln(stderr, "the programs are in", programs.Folder)
		}
		return err
	case len(args) > 2 && args[0] == "cluster" && args[1] == "--":
		return inCluster(ctx, stderr, func(ctx context.Context, c *cluster.Cluster) error {
			command := c.Command(ctx, args[2], args[3:]...)
			command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
			return command.Run()
		})
	}
	fmt.Fprint(stderr, usage)
	return flag.ErrHelp
}

// inCluster does something in a cluster that is there for this alone.
func inCluster(ctx context.Context, progress io.Writer, do func(context.Context, *cluster.Cluster) error) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	// Ctrl-C ends the start. Later it is the command's: the terminal sends it there too.
	startCtx, stopStart := signal.NotifyContext(ctx, os.Interrupt)
	defer stopStart()
	c, err := cluster.Up(startCtx, progress)
	if err != nil {
		return err
	}
	err = do(ctx, c)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if downErr := c.Down(err != nil); downErr != nil {
		err = errors.Join(err, downErr)
	}
	return err
}
