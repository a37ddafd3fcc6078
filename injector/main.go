// Command imds-webhook is the admission webhook of KubeVirt IMDS: it puts the
// sidecars imds-init and imds-server into the virt-launcher pods that ask for
// them, and checks the annotations on VirtualMachines.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/certificate"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
	"github.com/example/kubevirt-imds/injector/selfsigned"
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
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr, productionTiming))
}

// run is the whole program: it serves until ctx ends, and returns the exit
// status, 0 for a clean end, 1 for a failure, 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, timing timing) int {
	opts, err := parseOptions(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "imds-webhook: %v\nrun imds-webhook --help for usage\n", err)
		return 2
	case opts.version:
		fmt.Fprintf(stdout, "imds-webhook %s %s\n", version(), runtime.Version())
		return 0
	}

	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := serve(ctx, opts, timing, log); err != nil {
		log.Error("imds-webhook ends", "err", err)
		return 1
	}
	return 0
}

// serve loads what the webhook needs and serves until ctx ends.
func serve(ctx context.Context, opts options, timing timing, log *slog.Logger) error {
	certificates, err := openCertificates(opts, log)
	if err != nil {
		return err
	}
	patches, err := patchset.Open(opts.patches, opts.serverImage, log)
	if err != nil {
		return err
	}
	service, err := listen(opts, certificates, patches, timing, log)
	if err != nil {
		return err
	}
	return service.run(ctx)
}

// The names under which the API server reaches the webhook's Service, and how
// long a certificate for them lasts that dies with the process.
var selfSignedNames = []string{"imds-webhook.kubevirt-imds.svc", "imds-webhook.kubevirt-imds.svc.cluster.local"}

const selfSignedLifetime = 10 * 365 * 24 * time.Hour

func openCertificates(opts options, log *slog.Logger) (*certificate.Source, error) {
	if !opts.selfSigned {
		return certificate.FromFiles(opts.tlsCert, opts.tlsKey, log)
	}
	bundle, err := selfsigned.Issue(selfSignedLifetime, selfSignedNames...)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(bundle.Certificate, bundle.Key)
	if err != nil {
		return nil, err
	}
	return certificate.Fixed(pair), nil
}

// version is the module's version that the Go toolchain wrote into the binary.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
