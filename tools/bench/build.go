package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is what the folder that holds bench must be.
const module = "github.com/example/kubevirt-imds"

// binaries are the paths of what is compared, and the root of the module.
type binaries struct {
	source, server, init, webhook, reference string
}

// build makes the binaries as "just build" does, and the reference as Go's defaults have
// it.
func build(folder string) (b binaries, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	path, source, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || path != module {
		return b, errors.Join(fmt.Errorf("this is not module %s: run bench in a clone of its repository", module), err)
	}
	b.source = source
	for _, one := range []struct {
		path                  *string
		program, folder, tags string
	}{
		{&b.server, "imds-server", "server", "nethttpomithttp2"},
		{&b.init, "imds-init", "netsetup", ""},
		{&b.webhook, "imds-webhook", "injector", ""},
		{&b.reference, "reference", "tools/bench/reference", ""},
	} {
		*one.path = filepath.Join(folder, one.program)
		command := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", one.tags, "-ldflags", "-s -w -X main.version=bench", "-o", *one.path, "./"+one.folder)
		command.Dir = source
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := command.CombinedOutput(); err != nil {
			return b, fmt.Errorf("go build ./%s: %w\n%s", one.folder, err, said)
		}
	}
	return b, nil
}
