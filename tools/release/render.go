package main

import (
	"os"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// render builds an overlay with components, as a user's kustomization beside a clone does, with the release's
// images by tag and digest.
func (r *release) render(overlay string, components ...string) ([]byte, error) {
	kustomization := types.Kustomization{Resources: []string{"../overlays/" + overlay}}
	for _, component := range components {
		kustomization.Components = append(kustomization.Components, "../kustomize/components/"+component)
	}
	for _, image := range r.images {
		kustomization.Images = append(kustomization.Images, types.Image{Name: image.NewName, NewTag: r.version, Digest: image.Digest})
	}
	content, err := yaml.Marshal(kustomization)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(r.tree, "render-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), content, 0o644); err != nil {
		return nil, err
	}
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy // in which kubectl applies
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, err
	}
	return resources.AsYaml()
}
