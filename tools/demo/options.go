package main

import (
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/example/kubevirt-imds/tools/podnet"
)

const usage = `demo runs KubeVirt IMDS end to end on this machine, without a cluster.

usage: go run ./tools/demo [-binding masquerade|bridge] [-keep] [-json]

  -binding NAME  only this way to bind the VM's network interface; without it,
                 masquerade and then bridge
  -keep          leave everything running until Ctrl-C, and say how to look around
  -json          print one JSON document on standard output, for scripts, when
                 all is over; the progress goes to standard error. It holds no
                 whole token

It needs Go, and either root or a kernel that lets users make user namespaces;
where /dev/net/tun cannot be opened a veth pair is the guest's tap. Nothing is
left behind on the machine.

exit status: 0 all is as promised, 1 something is not, 2 wrong usage, 3 this
machine does not let us make namespaces (the message says what helps)
`

// options are the command line.
type options struct {
	bindings []podnet.Binding
	keep     bool
	json     bool
}

// bindings are those that the demo shows, in this order.
var bindings = []podnet.Binding{podnet.Masquerade, podnet.Bridge}

// parseOptions returns flag.ErrHelp when the usage is asked for.
func parseOptions(args []string) (options, error) {
	o := options{bindings: bindings}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("binding", "", func(name string) error {
		for _, b := range bindings {
			if name == string(b) {
				o.bindings = []podnet.Binding{b}
				return nil
			}
		}
		return fmt.Errorf("use one of %s", strings.Trim(fmt.Sprint(bindings), "[]"))
	})
	flags.BoolVar(&o.keep, "keep", false, "")
	flags.BoolVar(&o.json, "json", false, "")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("argument %q is not expected: everything is a flag", flags.Arg(0))
	}
	return o, nil
}
