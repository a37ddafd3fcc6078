package cluster

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestBuildOutputCountsAndKeepsErrors(t *testing.T) {
	const output = `go: downloading k8s.io/api v0.37.2
go: downloading sigs.k8s.io/yaml v1.6.0
internal/goarch
k8s.io/api/core/v1
github.com/vishvananda/netlink
# github.com/example/broken
./main.go:7:2: undefined: x
no newline at the end`

	for _, test := range []struct {
		name   string
		reader io.Reader
	}{
		{"at once", strings.NewReader(output)},
		{"byte by byte", iotest.OneByteReader(strings.NewReader(output))},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got buildOutput
			if _, err := io.Copy(&got, test.reader); err != nil {
				t.Fatal(err)
			}
			if got, want := got.status(), "3 packages compiled"; got != want {
				t.Errorf("status %q, want %q", got, want)
			}
			want := "# github.com/example/broken\n./main.go:7:2: undefined: x\nno newline at the end"
			if got := got.errors(); got != want {
				t.Errorf("errors %q, want %q", got, want)
			}
		})
	}
}

func TestBuildStatusBeforeTheFirstPackage(t *testing.T) {
	var output buildOutput
	if got, want := output.status(), "nothing to compile so far"; got != want {
		t.Errorf("status %q, want %q", got, want)
	}
	fmt.Fprintln(&output, "go: downloading k8s.io/api v0.37.2")
	if got, want := output.status(), "1 modules downloaded"; got != want {
		t.Errorf("status %q, want %q", got, want)
	}
}
