package main

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

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
	case strings.ContainsAny(o.serverImage, " \t\r\n"):
		return fmt.Errorf("--server-image %q has white space in it: name one image", o.serverImage)
	case o.service == "":
		return errors.New("--service is empty: name the webhook's Service, such as imds-webhook.kubevirt-imds.svc")
	case o.selfSigned && (o.tlsCert != "" || o.tlsKey != ""):
		return errors.New("--self-signed contradicts --tls-cert and --tls-key: give one or the other")
	case !o.selfSigned && o.tlsCert == "" && o.tlsKey == "":
		return errors.New("no certificate: give --tls-cert and --tls-key, or --self-signed")
	case !o.selfSigned && o.tlsCert == "":
		return errors.New("--tls-cert is missing: --tls-key needs the certificate of its key")
	case !o.selfSigned && o.tlsKey == "":
		return errors.New("--tls-key is missing: --tls-cert needs the key of its certificate")
	}
	return nil
}
