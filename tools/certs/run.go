package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

const usage = `certs makes the CA, the certificate and the key of imds-webhook for overlays/manual.

usage:
  go run ./tools/certs [--out DIR] [--names NAMES] [--days N] [--force]
  go run ./tools/certs --check [--out DIR] [--names NAMES]

  --out DIR      where ca.crt, tls.crt and tls.key go
                 (default overlays/manual/tls/made-by-just-certs)
  --names NAMES  the DNS names and IP addresses of the certificate, separated by
                 commas (default the Service imds-webhook in kubevirt-imds)
  --days N       how long it lasts, 1 to 3650 (default 365)
  --force        replace the files that are there; ca.crt keeps the CA before the
                 new one, so that no admission fails while the webhook's replicas
                 still serve the old certificate
  --check        make nothing: exit with status 1 if a file is missing, expired or
                 for other names

The CA's key is not kept: it can sign nothing else. The exit status is 0 when all is
well, 1 after a failure and 2 for a wrong command line.
`

// options are the command line.
type options struct {
	out   string
	names []string
	days  int
	force bool
	check bool
}

// run is the whole program; it returns the exit status.
func run(args []string, now time.Time, stdout, stderr io.Writer) int {
	opts, err := parseOptions(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "certs: %v\nrun certs --help for usage\n", err)
		return 2
	}
	if opts.check {
		err = check(opts, now, stdout)
	} else {
		err = issue(opts, now, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "certs: %v\n", err)
		return 1
	}
	return 0
}

func parseOptions(args []string) (options, error) {
	var o options
	var names string
	flags := flag.NewFlagSet("certs", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.out, "out", "overlays/manual/tls/made-by-just-certs", "")
	flags.StringVar(&names, "names", "imds-webhook.kubevirt-imds.svc,imds-webhook.kubevirt-imds.svc.cluster.local", "")
	flags.IntVar(&o.days, "days", 365, "")
	flags.BoolVar(&o.force, "force", false, "")
	flags.BoolVar(&o.check, "check", false, "")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	for name := range strings.SplitSeq(names, ",") {
		if name = strings.TrimSpace(name); name != "" {
			o.names = append(o.names, name)
		}
	}
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("argument %q is not expected: everything is a flag", flags.Arg(0))
	case len(o.names) == 0:
		return options{}, errors.New("--names is empty: name the webhook's Service, such as imds-webhook.kubevirt-imds.svc")
	case o.days < 1 || o.days > 3650:
		return options{}, fmt.Errorf("--days %d is not allowed: use 1 to 3650", o.days)
	case o.check && o.force:
		return options{}, errors.New("--check contradicts --force: it makes nothing")
	}
	return o, nil
}
