// Command imds-webhook is the admission webhook: it puts imds-init and imds-server into the virt-launcher
// pods that ask for them, and checks the annotations on VirtualMachines and their instances.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

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
	os.Exit(run(ctx, os.Args[1:], thisPod, os.Stdout, os.Stderr, productionTiming))
}

// podEnvironment is what a pod with an API token finds around it.
type podEnvironment struct {
	getenv               func(string) string
	serviceAccountFolder string // where the kubelet mounts ca.crt and token
}

var thisPod = podEnvironment{os.Getenv, "/var/run/secrets/kubernetes.io/serviceaccount"}

// run serves until ctx ends, and returns the exit status: 0 clean, 1 a failure, 2 a wrong command line.
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

	// What it holds is little and bounded: the collector may wait for more of it.
	debug.SetGCPercent(400)
	log := slog.New(slog.NewTextHandler(&limitedLines{Writer: stderr, most: maxLines}, nil))
	strangers := slog.New(slog.NewTextHandler(&limitedLines{Writer: stderr, most: maxLinesOfOthers}, nil))
	limitMemory(log)
	service, err := listen(opts, pod, timing, log, strangers)
	if err == nil {
		err = service.run(ctx)
	}
	if err != nil {
		log.Error("imds-webhook ends", "err", err)
		return 1
	}
	return 0
}

// openCertificates returns the certificate to serve, and the publisher of its CA, which may be nil.
func openCertificates(opts options, pod podEnvironment, timing timing, log *slog.Logger) (*certificateSource, *publisher, error) {
	if !opts.selfSigned {
		certificates, err := certificateFiles(opts.tlsCert, opts.tlsKey, opts.service, log)
		return certificates, nil, err
	}
	const lifetime = 10 * 365 * 24 * time.Hour // it dies with the process
	bundle, err := selfsigned.Issue(lifetime, opts.service, opts.service+".cluster.local")
	if err != nil {
		return nil, nil, err
	}
	publisher, err := newPublisher(bundle.CA, timing.publish, pod, log)
	if err != nil {
		return nil, nil, fmt.Errorf("--self-signed: %w, or give --tls-cert and --tls-key", err)
	}
	fixed, err := parseChain(bundle.Certificate, bundle.Key, bundle.CA)
	return &certificateSource{service: opts.service, current: fixed, log: log, told: problems{}}, publisher, err
}

// limitMemory has the garbage collector work harder above three eighths of the container's memory limit
// (cgroup v2, then v1): with the program's own pages it is within half.
func limitMemory(log *slog.Logger) {
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// "max" in v2, and in v1 a number beyond every machine, are none.
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && limit < 1<<40 {
			debug.SetMemoryLimit(limit / 8 * 3)
			log.Info("memory limited", "bytes", limit/8*3)
		}
		return
	}
}

// version is set by -ldflags "-X main.version=v1.2.3"; without, it is what the Go tool recorded.
var version string

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}

//go:embed usage.txt
var usage string

// options are the command line.
type options struct {
	listen, healthListen, tlsCert, tlsKey, service, patches, serverImage string
	selfSigned, version                                                  bool
}

// parseOptions reads and checks the command line. It returns flag.ErrHelp when the usage is asked for.
func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("imds-webhook", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.listen, "listen", ":8443", "")
	flags.StringVar(&o.healthListen, "health-listen", ":8081", "")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "")
	flags.StringVar(&o.tlsKey, "tls-key", "", "")
	flags.BoolVar(&o.selfSigned, "self-signed", false, "")
	flags.StringVar(&o.service, "service", "imds-webhook.kubevirt-imds.svc", "")
	flags.StringVar(&o.patches, "patches", "", "")
	flags.StringVar(&o.serverImage, "server-image", "", "")
	flags.BoolVar(&o.version, "version", false, "")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	return o, o.check(flags.Args())
}

func (o options) check(arguments []string) error {
	switch {
	case len(arguments) > 0:
		return fmt.Errorf("argument %q is not expected: everything is a flag", arguments[0])
	case o.version:
		return nil
	case o.patches == "":
		return errors.New("--patches is missing: name the folder with the pod's patches")
	case o.serverImage == "":
		return errors.New("--server-image is missing: name the image with imds-init and imds-server")
	case strings.ContainsAny(o.serverImage, " \t\r\n$"):
		return fmt.Errorf("--server-image %q has white space or a variable that is not set in it: name one image", o.serverImage)
	case o.service == "" || o.listen == "" || o.healthListen == "":
		return errors.New("--service, --listen or --health-listen is empty: leave it out for its default")
	case o.selfSigned && (o.tlsCert != "" || o.tlsKey != ""):
		return errors.New("--self-signed contradicts --tls-cert and --tls-key: give one or the other")
	case !o.selfSigned && (o.tlsCert == "" || o.tlsKey == ""):
		return errors.New("no certificate: give both --tls-cert and --tls-key, or --self-signed")
	}
	return nil
}
