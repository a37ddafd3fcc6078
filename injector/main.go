// Command imds-webhook is the admission webhook of KubeVirt IMDS: it puts the
// sidecars imds-init and imds-server into the virt-launcher pods that ask for
// them, and checks the annotations on VirtualMachines and their instances.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/example/kubevirt-imds/injector/internal/cabundle"
	"github.com/example/kubevirt-imds/injector/internal/certificate"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

func main() {
	ctx, drain := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		// In this order: from the drain on, a second signal ends the process.
		signal.Stop(signals)
		drain()
	}()
	os.Exit(run(ctx, os.Args[1:], thisPod, os.Stdout, os.Stderr, productionTiming))
}

// podEnvironment is what a pod with an API token finds around it.
type podEnvironment struct {
	getenv               func(string) string
	serviceAccountFolder string
}

var thisPod = podEnvironment{os.Getenv, cabundle.ServiceAccountFolder}

// run is the whole program: it serves until ctx ends, and returns the exit
// status, 0 for a clean end, 1 for a failure, 2 for a wrong command line.
func run(ctx context.Context, args []string, pod podEnvironment, stdout, stderr io.Writer, timing timing) int {
	opts, err := parseOptions(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "imds-webhook: %v\nrun imds-webhook --help for usage\n", err)
		return 2
	case opts.version:
		fmt.Fprintln(stdout, "imds-webhook", buildVersion())
		return 0
	}

	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := serve(ctx, opts, pod, timing, log); err != nil {
		log.Error("imds-webhook ends", "err", err)
		return 1
	}
	return 0
}

// serve loads what the webhook needs and serves until ctx ends.
func serve(ctx context.Context, opts options, pod podEnvironment, timing timing, log *slog.Logger) error {
	certificates, publication, err := openCertificates(opts, pod, timing, log)
	if err != nil {
		return err
	}
	patches, err := patchset.Open(opts.patches, opts.serverImage)
	if err != nil {
		return err
	}
	service, err := listen(opts, certificates, publication, patches, timing, log)
	if err != nil {
		return err
	}
	return service.run(ctx)
}

// openCertificates returns the certificate to serve. The publication is nil where
// the API server's trust in it is somebody else's matter.
func openCertificates(opts options, pod podEnvironment, timing timing, log *slog.Logger) (*certificate.Source, *publication, error) {
	if opts.selfSigned {
		certificates, publication, err := selfSign(pod, timing, log)
		if err != nil {
			return nil, nil, fmt.Errorf("--self-signed: %w, or give --tls-cert and --tls-key", err)
		}
		return certificates, publication, nil
	}
	certificates, err := certificate.FromFiles(opts.tlsCert, opts.tlsKey, log)
	return certificates, nil, err
}

// version is set by the build with -ldflags "-X main.version=v1.2.3".
var version string

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
