// Package manifest makes the generated files of kustomize/: the webhook's
// configuration and the patches for a VM's pod.
package manifest

import (
	"bytes"
	"embed"
	"fmt"
	"path"
	"text/template"

	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// File is a generated file.
type File struct {
	// Path is relative to the repository, with slashes.
	Path    string
	Content []byte
}

// Package is the kpt package that holds the manifests.
const Package = "kustomize"

// Options is what an installation may want otherwise.
type Options struct {
	// Namespace is where the webhook runs.
	Namespace string
	// FailurePolicy says what becomes of a VM that asks for IMDS while the
	// webhook cannot be reached: Fail or Ignore.
	FailurePolicy string
}

// Defaults are the options of the committed files.
var Defaults = Options{Namespace: contract.Namespace, FailurePolicy: "Fail"}

//go:embed *.tmpl
var sources embed.FS

var templates = template.Must(template.New("").Funcs(functions).Option("missingkey=error").ParseFS(sources, "*.tmpl"))

// Configuration returns the MutatingWebhookConfiguration.
func Configuration(options Options) (File, error) {
	return execute(path.Join(Package, "base/mutatingwebhookconfiguration.yaml"), options)
}

// Patches returns the strategic merge patches for a VM's pod that every
// installation has.
func Patches(options Options) ([]File, error) {
	return executeAll(options,
		path.Join(Package, "sidecar/10-imds-init.yaml"),
		path.Join(Package, "sidecar/20-imds-server.yaml"))
}

// All returns every generated file of the package, those of components included.
func All(options Options) ([]File, error) {
	return executeAll(options,
		path.Join(Package, "base/mutatingwebhookconfiguration.yaml"),
		path.Join(Package, "sidecar/10-imds-init.yaml"),
		path.Join(Package, "sidecar/20-imds-server.yaml"),
		path.Join(Package, "components/node-agent/25-node-agent.yaml"),
		path.Join(Package, "components/regular-containers/30-regular-containers.yaml"))
}

func executeAll(options Options, names ...string) ([]File, error) {
	files := make([]File, len(names))
	for i, name := range names {
		var err error
		if files[i], err = execute(name, options); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// execute makes the file at name from the template of the same base name.
func execute(name string, options Options) (File, error) {
	var content bytes.Buffer
	if err := templates.ExecuteTemplate(&content, path.Base(name)+".tmpl", values(options)); err != nil {
		return File{}, fmt.Errorf("%s: %w", name, err)
	}
	return File{Path: name, Content: content.Bytes()}, nil
}
