package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells a human what is happening, one short line for each step.
type progress struct {
	out      io.Writer
	terminal bool
}

func newProgress(out io.Writer) *progress {
	file, ok := out.(*os.File)
	if ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		ok = err == nil
	}
	return &progress{out: out, terminal: ok}
}

// progressWriter is where the progress goes.
func progressWriter(o options, stdout, stderr io.Writer) io.Writer {
	if o.json {
		return stderr
	}
	return stdout
}

// step is a step that was taken.
type step struct {
	Name         string  `json:"name"`
	Detail       string  `json:"detail"`
	Milliseconds float64 `json:"milliseconds"`

	duration time.Duration
}

func newStep(name, detail string, duration time.Duration) step {
	return step{name, detail, milliseconds(duration), duration}
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

func (p *progress) title(text string) { fmt.Fprintf(p.out, "%s\n", text) }

// step takes a step and reports it in one line. While it lasts a terminal shows
// its name.
func (p *progress) step(name string, take func() (detail string, err error)) (step, error) {
	if p.terminal {
		fmt.Fprintf(p.out, "  %-12s ...", name)
	}
	start := time.Now()
	detail, err := take()
	s := newStep(name, detail, time.Since(start))
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	if err != nil {
		fmt.Fprintf(p.out, "  %-12s FAILED\n", name)
		return s, fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(p.out, "  %-12s %-68s %9s\n", name, detail, shown(s.duration))
	return s, nil
}

// note adds lines below a step.
func (p *progress) note(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(p.out, "  %-12s %s\n", "", strings.TrimRight(line, "\n"))
	}
}

// shown is a duration as a human reads it.
func shown(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", milliseconds(d))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
