package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// module is what the folder that holds the demo must be.
const module = "github.com/example/kubevirt-imds"

// handover is what the first process leaves to the second.
type handover struct {
	// work is a folder that holds the images, and is removed in the end.
	work string
	// source is the root of the module.
	source string
	// built is how long the build took.
	built time.Duration
}

// The environment variables that carry it.
const (
	workVariable   = "IMDS_DEMO_WORK"
	sourceVariable = "IMDS_DEMO_SOURCE"
	builtVariable  = "IMDS_DEMO_BUILT"
)

func receiveHandover(getenv func(string) string) (handover, bool) {
	built, err := time.ParseDuration(getenv(builtVariable))
	return handover{getenv(workVariable), getenv(sourceVariable), built}, err == nil
}

func (h handover) send() error {
	return errors.Join(
		os.Setenv(workVariable, h.work),
		os.Setenv(sourceVariable, h.source),
		os.Setenv(builtVariable, h.built.String()),
	)
}

// The two images of the Containerfile, and where their files are built from.
var images = map[string]map[string]string{
	serverImage:  {"imds-server": "server", "imds-init": "netsetup"},
	webhookImage: {"imds-webhook": "injector"},
}

// The images' names.
const (
	serverImage  = "kubevirt-imds-server:demo"
	webhookImage = "kubevirt-imds-webhook:demo"
)

// imageFolder is where the files of an image are.
func (h handover) imageFolder(image string) string {
	return filepath.Join(h.work, "images", strings.TrimSuffix(image, ":demo"))
}

// prepare is the first process: it builds, runs the second one, and cleans up.
func prepare(ctx context.Context, o options, stdout, stderr io.Writer) int {
	progress := newProgress(progressWriter(o, stdout, stderr))
	fail := func(code int, err error) int {
		if o.json {
			writeJSON(stdout, document{Error: err.Error()})
		}
		fmt.Fprintln(stderr, "demo:", err)
		return code
	}
	work, err := os.MkdirTemp("", "kubevirt-imds-demo-")
	if err != nil {
		return fail(exitFailed, err)
	}
	defer os.RemoveAll(work)

	progress.title("KubeVirt IMDS, end to end on this machine")
	h := handover{work: work}
	step, err := progress.step("build", func() (string, error) {
		h.source, err = moduleRoot(ctx)
		if err != nil {
			return "", err
		}
		return "imds-webhook, imds-init, imds-server", build(ctx, h)
	})
	if err != nil {
		return fail(exitFailed, err)
	}
	h.built = step.duration
	if err := h.send(); err != nil {
		return fail(exitFailed, err)
	}
	code, err := podnet.Rerun(unix.CLONE_NEWIPC)
	if err != nil {
		return fail(exitUnavailable, err)
	}
	return code
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Path}} {{.Dir}}")
	path, folder, _ := strings.Cut(strings.TrimSpace(out), " ")
	if err != nil || path != module {
		return "", errors.Join(fmt.Errorf("this is not module %s: run the demo in a clone of its repository", module), err)
	}
	return folder, nil
}

// build makes the binaries, and puts them where the Containerfile puts them.
func build(ctx context.Context, h handover) error {
	out := filepath.Join(h.work, "build") + "/"
	args := []string{"build", "-trimpath", "-buildmode=default", "-ldflags=-s -w", "-o", out}
	for _, files := range images {
		for _, source := range files {
			args = append(args, "./"+source)
		}
	}
	if _, err := goCommand(ctx, h.source, args...); err != nil {
		return err
	}
	unix.Umask(0o022) // the images' programs run as other users
	for image, files := range images {
		folder := h.imageFolder(image)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for name, source := range files {
			file := filepath.Join(folder, name)
			if err := os.Rename(filepath.Join(out, source), file); err != nil {
				return err
			}
			if err := os.Chmod(file, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

func goCommand(ctx context.Context, folder string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, said.String())
	}
	return string(out), nil
}
