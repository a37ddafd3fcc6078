package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/example/kubevirt-imds/tools/generate/internal/krmfunction"
	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
	"github.com/example/kubevirt-imds/tools/generate/internal/unified"
)

const usage = `generate makes the manifests that must agree with the binaries.

usage:
  go run ./tools/generate [-check] [-root DIR]
  go run ./tools/generate krm-function

  -check      write nothing: show how the committed files differ from what would
              be written, and exit with status 1 if they do
  -root DIR   the repository (default: the current folder)

krm-function reads a ResourceList on stdin and writes it on stdout, for
"kpt fn eval --exec", a Kptfile's pipeline and "kustomize build --enable-exec". Its
functionConfig is a ConfigMap; the keys namespace and failure-policy are optional.

The exit status is 0 when all is well, 1 after a failure or a difference and 2 for
a wrong command line.
`

// run is the whole program; it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	check := flags.Bool("check", false, "")
	root := flags.String("root", ".", "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "generate: %v\nrun generate -help for usage\n", err)
		return 2
	case flags.NArg() > 1 || flags.NArg() == 1 && flags.Arg(0) != "krm-function":
		fmt.Fprintf(stderr, "generate: argument %q is not expected: use krm-function or nothing\n", flags.Arg(flags.NArg()-1))
		return 2
	}

	switch {
	case flags.NArg() == 1:
		err = krmfunction.Run(stdin, stdout)
	case *check:
		err = checkFiles(*root, stdout)
	default:
		err = writeFiles(*root, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "generate: %v\n", err)
		return 1
	}
	return 0
}

// goldenFolder holds what the overlays render to, without and with the node agent, so that a review sees it.
const goldenFolder = "tools/generate/testdata/golden"

// generate returns every file that is generated and committed.
func generate(root string) ([]manifest.File, error) {
	files, err := manifest.All(manifest.Defaults)
	if err != nil {
		return nil, err
	}
	tree, err := render.Load(root, files)
	if err != nil {
		return nil, fmt.Errorf("%w: run generate in the repository, or name it with -root", err)
	}
	for _, overlay := range render.Overlays {
		content, err := tree.Build(overlay)
		if err != nil {
			return nil, err
		}
		withAgent, err := tree.BuildWith(overlay, "node-agent")
		if err != nil {
			return nil, err
		}
		name := path.Join(goldenFolder, path.Base(overlay))
		files = append(files, manifest.File{Path: name + ".yaml", Content: content}, manifest.File{Path: name + "-node-agent.yaml", Content: withAgent})
	}
	return files, nil
}

// writeFiles writes the files that differ, and names them.
func writeFiles(root string, stdout io.Writer) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for _, file := range files {
		name := filepath.Join(root, filepath.FromSlash(file.Path))
		if existing, err := os.ReadFile(name); err == nil && bytes.Equal(existing, file.Content) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, file.Content, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "wrote", file.Path)
	}
	return nil
}

// checkFiles shows how the committed files differ; a difference is an error.
func checkFiles(root string, stdout io.Writer) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	stale := 0
	for _, file := range files {
		committed, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file.Path)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if diff := unified.Diff(file.Path, string(committed), file.Path+" (generated)", string(file.Content)); diff != "" {
			stale++
			fmt.Fprint(stdout, diff)
		}
	}
	if stale > 0 {
		return fmt.Errorf("%d of %d generated files are not up to date: run go run ./tools/generate and review the difference", stale, len(files))
	}
	return nil
}
