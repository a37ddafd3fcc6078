// Command e2e starts what the tests need of the real world on this machine, without Docker: a Kubernetes (etcd,
// control plane, kubelet, kube-proxy and containerd, built from Go modules, in private namespaces), and guests in
// QEMU.
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
	"regexp"
	"syscall"

	"github.com/example/kubevirt-imds/tools/e2e/checks"
	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/guests"
	"github.com/example/kubevirt-imds/tools/e2e/smoke"
)

const usage = `usage: go run . build                             compile Kubernetes and containerd; once, some minutes
       go run . check [OPTION...]                 start a cluster, check the product in it, stop it
       go run . guests [-run REGEXP]              check the product with guests in QEMU
       go run . cluster -- COMMAND [ARGUMENT...]   start a cluster, run the command in it, stop it
       go run . smoke                             start a cluster, check that it is a real one, stop it

check applies each overlay with kubectl, checks what it does, and deletes it; a VM's pod that got its sidecars
really runs. The lines are those of go test -v; a table at the end says what was proved.
  -run REGEXP        only the checks whose names, such as kind/pods/opted-in, match
  -keep              wait for Ctrl-C after the first overlay with a failed check, or after the last, and leave it
                     installed until then
  -kubeconfig FILE   a cluster that is there already, with KubeVirt and the images in it, such as one of kind after
                     just kind-load: the overlay kind alone, and no pod that runs

guests checks what a VM's guest finds, and what nobody else does: Debian's kernel in QEMU, in pods whose network is
wired as KubeVirt does it. It needs root, the programs qemu-system-x86_64, unshare and setpriv, and, the first time,
a mirror of Debian; for the checks kubelet/..., what starts a cluster. -run is as for check, with names such as
bindings/bridge/served.

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
	flags := flag.NewFlagSet("e2e", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp
	}
	switch name, rest := flags.Arg(0), flags.Args(); {
	case name == "build" && len(rest) == 1:
		return build(ctx, stderr)
	case name == "cluster" && len(rest) > 2 && rest[1] == "--":
		return inCluster(ctx, stderr, func(ctx context.Context, c *cluster.Cluster) error {
			command := c.Command(ctx, rest[2], rest[3:]...)
			command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
			return command.Run()
		})
	case name == "check":
		return check(ctx, rest[1:], stdout, stderr)
	case name == "guests":
		return checkGuests(ctx, rest[1:], stdout, stderr)
	case name == "smoke" && len(rest) == 1:
		return inCluster(ctx, stderr, func(ctx context.Context, c *cluster.Cluster) error {
			return smoke.Run(ctx, c, stdout)
		})
	}
	flags.Usage()
	return flag.ErrHelp
}

func build(ctx context.Context, progress io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	programs, err := cluster.Build(ctx, progress)
	if err != nil {
		return err
	}
	fmt.Fprintln(progress, "the programs are in", programs.Folder)
	return nil
}

// check runs the checks of the product that its own arguments name.
func check(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	keep := flags.Bool("keep", false, "")
	kubeconfig := flags.String("kubeconfig", "", "")
	filter, err := parseFilter(flags, args)
	if err != nil {
		return err
	}
	options := checks.Options{Kubeconfig: *kubeconfig, Filter: filter, Keep: *keep, Out: stdout}
	run := func(ctx context.Context, c *cluster.Cluster) error {
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		options.Cluster = c
		return checks.Run(ctx, options)
	}
	if *kubeconfig != "" {
		return run(ctx, nil)
	}
	return inCluster(ctx, stderr, run)
}

// parseFilter parses arguments and returns the expression that -run has among them.
func parseFilter(flags *flag.FlagSet, args []string) (*regexp.Regexp, error) {
	expression := flags.String("run", "", "")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	if flags.NArg() > 0 {
		flags.Usage()
		return nil, flag.ErrHelp
	}
	filter, err := regexp.Compile(*expression)
	if err != nil {
		return nil, fmt.Errorf("-run: %w", err)
	}
	return filter, nil
}

// checkGuests runs the checks with real guests that its own arguments name.
func checkGuests(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("guests", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	filter, err := parseFilter(flags, args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return guests.Run(ctx, filter, stdout, stderr)
}

// inCluster does something in a cluster that is there for this alone. The run folder stays when it fails.
func inCluster(ctx context.Context, progress io.Writer, do func(context.Context, *cluster.Cluster) error) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	// Ctrl-C ends the start. Later it is the command's: the terminal sends it there too.
	startCtx, stopStart := signal.NotifyContext(ctx, os.Interrupt)
	defer stopStart()

	// Before a build that takes minutes.
	if err := cluster.Check(); err != nil {
		return err
	}
	programs, err := cluster.Build(startCtx, progress)
	if err != nil {
		return err
	}
	c, err := cluster.Start(startCtx, cluster.Options{Programs: programs, Progress: progress})
	if err != nil {
		return err
	}
	err = do(ctx, c)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if stopErr := c.Stop(); stopErr != nil {
		err = errors.Join(err, stopErr)
	}
	if err != nil {
		fmt.Fprintln(progress, "the logs of the cluster are kept in", c.Folder())
		return err
	}
	return os.RemoveAll(c.Folder())
}
