package cluster

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
)

// buildOutput takes in what `go build -v` writes: a line for each package that it compiles and for each
// module that it downloads, and between them the errors.
type buildOutput struct {
	mutex      sync.Mutex
	rest       []byte // of a line not yet complete
	packages   int
	downloads  int
	complaints []string
}

// Write takes any number of bytes; it never fails.
func (o *buildOutput) Write(data []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.rest = append(o.rest, data...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte("\n"))
		if !found {
			return len(data), nil
		}
		o.rest = rest
		switch text := string(line); {
		case strings.HasPrefix(text, "go: downloading "):
			o.downloads++
		case text != "" && !strings.ContainsAny(text, " \t#:"):
			o.packages++
		default:
			o.complaints = append(o.complaints, text)
		}
	}
}

// status says how far the build is.
func (o *buildOutput) status() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	switch {
	case o.packages > 0:
		return fmt.Sprintf("%d packages compiled", o.packages)
	case o.downloads > 0:
		return fmt.Sprintf("%d modules downloaded", o.downloads)
	}
	return "nothing to compile so far"
}

// errors is what the build wrote besides its progress.
func (o *buildOutput) errors() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return strings.Join(append(o.complaints, string(o.rest)), "\n")
}
