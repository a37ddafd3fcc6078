// Package render builds kustomizations as `kubectl kustomize` does, on a copy of
// the repository's manifests in memory.
package render

import (
	"fmt"
	"io/fs"
	"os"
	"path"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
)

// Overlays are the installations that the project offers, by their folder.
var Overlays = []string{"overlays/cert-manager", "overlays/kind", "overlays/manual"}

// madeByUser is where the manual overlay's files are that `just certs` makes. They
// are no part of the repository.
const madeByUser = "overlays/manual/tls/made-by-just-certs"

// StandIns stand in for these files, by their paths.
var StandIns = map[string]string{
	madeByUser + "/ca.crt":  "the CA that just certs makes\n",
	madeByUser + "/tls.crt": "the certificate that just certs makes\n",
	madeByUser + "/tls.key": "the key that just certs makes\n",
}

// clone is where the repository is in the Tree.
const clone = "/kubevirt-imds"

// Tree is a copy in memory of the repository's kustomize/ and overlays/. All names
// are relative to the repository, with slashes.
type Tree struct {
	files filesys.FileSystem
}

// Load reads the manifests of the repository at root, with the generated files
// as they are to be.
func Load(root string, generated []manifest.File) (*Tree, error) {
	tree := &Tree{files: filesys.MakeFsInMemory()}
	for _, folder := range []string{manifest.Package, "overlays"} {
		if err := tree.copy(os.DirFS(root), folder); err != nil {
			return nil, err
		}
	}
	for _, file := range generated {
		if err := tree.Write(file.Path, file.Content); err != nil {
			return nil, err
		}
	}
	for name, content := range StandIns {
		if err := tree.Write(name, []byte(content)); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

func (t *Tree) copy(source fs.FS, folder string) error {
	return fs.WalkDir(source, folder, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == madeByUser:
			return fs.SkipDir
		case entry.IsDir():
			return nil
		}
		content, err := fs.ReadFile(source, name)
		if err != nil {
			return err
		}
		return t.Write(name, content)
	})
}

// Write adds a file to the copy, or replaces it.
func (t *Tree) Write(name string, content []byte) error {
	return t.files.WriteFile(path.Join(clone, name), content)
}

// BuildWith renders the kustomization in folder with components.
func (t *Tree) BuildWith(folder string, components ...string) ([]byte, error) {
	const with = "with-components"
	kustomization := "resources: [../" + folder + "]\ncomponents:\n"
	for _, component := range components {
		kustomization += "- ../" + manifest.Package + "/components/" + component + "\n"
	}
	if err := t.Write(with+"/kustomization.yaml", []byte(kustomization)); err != nil {
		return nil, err
	}
	return t.Build(with)
}

// Build renders the kustomization in folder, in the order in which kubectl
// applies it.
func (t *Tree) Build(folder string) ([]byte, error) {
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	resources, err := krusty.MakeKustomizer(options).Run(t.files, path.Join(clone, folder))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	return resources.AsYaml()
}
