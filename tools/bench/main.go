// Command bench compares the project's programs with references: a minimal net/http
// program, a direct reaction to netlink. It builds the real binaries, runs them as
// processes of their own, and measures each in turn with its reference, so that what
// slows the machine slows both. What it prints are ratios, and nothing passes or fails.
//
// One file has one job: build.go builds, process.go runs and looks at processes, load.go
// asks them, server.go, webhook.go, netsetup.go and sizes.go say what is compared, and
// result.go prints it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

const usage = `bench compares the programs of KubeVirt IMDS with references in the same run.

usage: go run ./tools/bench [-rounds N] [-time D] [-only REGEXP] [-svg FILE]

  -rounds N     how often each is measured, in turn with its reference (default 5)
  -time D       how long a measurement under load takes (default 2s)
  -only REGEXP  only the comparisons whose names match
  -svg FILE     also draw the ratios, as an SVG image

It prints a table in Markdown: of each figure the median, and the lowest, the median and
the highest ratio of a round. Root, or an ordinary user whose kernel has user namespaces.

comparisons:
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// bench is one run.
type bench struct {
	rounds   int
	time     time.Duration // of a measurement under load
	binaries binaries
	work     string      // a folder for files
	cleanups []func()    // after a comparison
	networks []io.Closer // when all is over, since the kernel is busy then with removing them
}

// comparison measures something of ours and of a reference, in turn.
type comparison struct {
	name string
	// figures are what a measurement returns, in this order.
	figures []figure
	// prepare returns the two measurements.
	prepare func(*bench) (ours, reference measurement, err error)
	// once: the figures are the same each time.
	once bool
}

type measurement func() ([]float64, error)

// later has something done after the comparison.
func (b *bench) later(do func()) { b.cleanups = append(b.cleanups, do) }

func (b *bench) cleanUp() {
	for len(b.cleanups) > 0 {
		last := len(b.cleanups) - 1
		do := b.cleanups[last]
		b.cleanups = b.cleanups[:last]
		do()
	}
}

func comparisons() []comparison {
	return slices.Concat(serverComparisons(), netsetupComparisons(), webhookComparisons(), sizeComparisons())
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	rounds := flags.Int("rounds", 5, "")
	duration := flags.Duration("time", 2*time.Second, "")
	only := flags.String("only", "", "")
	svg := flags.String("svg", "", "")
	err := flags.Parse(args)
	wanted, errOnly := regexp.Compile(*only)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		for _, c := range comparisons() {
			fmt.Fprintln(stdout, " ", c.name)
		}
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("argument %q is not expected: everything is a flag", flags.Arg(0))
	case err == nil && (*rounds < 1 || *duration <= 0):
		err = errors.New("-rounds and -time are more than nothing")
	case err == nil && errOnly != nil:
		err = fmt.Errorf("-only: %w", errOnly)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v; see bench -help\n", err)
		return 2
	}
	if os.Geteuid() != 0 && !podnet.Inside() {
		code, err := podnet.Rerun(0)
		if err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return code
	}
	figures, err := measureAll(wanted, *rounds, *duration, stderr)
	if err == nil {
		err = write(figures, *svg, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func write(figures []figure, svg string, stdout io.Writer) error {
	fmt.Fprint(stdout, table(figures))
	if svg == "" {
		return nil
	}
	return os.WriteFile(svg, []byte(plot(figures)), 0o644)
}

// measureAll builds, and then makes the comparisons whose names are wanted. One that
// cannot be made here is told, and the others go on.
func measureAll(wanted *regexp.Regexp, rounds int, duration time.Duration, stderr io.Writer) (figures []figure, err error) {
	if podnet.Inside() { // a network namespace in which lo is down
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return nil, fmt.Errorf("lo: %w", err)
		}
	}
	b := &bench{rounds: rounds, time: duration}
	if b.work, err = os.MkdirTemp("", "imds-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.work)
	defer func() {
		for _, network := range b.networks {
			network.Close()
		}
	}()
	fmt.Fprintln(stderr, "build")
	if b.binaries, err = build(b.work); err != nil {
		return nil, err
	}
	for _, c := range comparisons() {
		if !wanted.MatchString(c.name) {
			continue
		}
		fmt.Fprintln(stderr, c.name)
		measured, err := b.measure(c)
		b.cleanUp()
		if err != nil {
			fmt.Fprintf(stderr, "%s: left out: %v\n", c.name, err)
			continue
		}
		figures = append(figures, measured...)
	}
	return figures, nil
}

// measure makes the rounds of a comparison.
func (b *bench) measure(c comparison) ([]figure, error) {
	ours, reference, err := c.prepare(b)
	if err != nil {
		return nil, err
	}
	rounds := b.rounds
	if c.once {
		rounds = 1
	}
	figures := c.figures
	for range rounds {
		values, err := ours()
		if err != nil {
			return nil, err
		}
		references, err := reference()
		if err != nil {
			return nil, fmt.Errorf("the reference: %w", err)
		}
		for i := range figures {
			figures[i].values = append(figures[i].values, values[i])
			figures[i].references = append(figures[i].references, references[i])
		}
	}
	return figures, nil
}
