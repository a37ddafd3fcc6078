package krmfunction

import (
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/kyaml/fn/framework"
	"sigs.k8s.io/kustomize/kyaml/kio/kioutil"
	"sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
)

// packageFolder looks for the files of our kpt package, which may be part of
// another one, and returns where they are.
func packageFolder(items []*yaml.RNode) (folder string, found bool) {
	for _, item := range items {
		if item.GetKind() != "MutatingWebhookConfiguration" {
			continue
		}
		if folder, found := strings.CutSuffix("/"+pathOf(item), "/base/mutatingwebhookconfiguration.yaml"); found {
			return strings.TrimPrefix(folder, "/"), true
		}
	}
	return "", false
}

// updatePackage updates every generated file of the package in folder. kpt does
// not read the patches, which are no resources (.krmignore), but writes them.
func updatePackage(list *framework.ResourceList, folder string, options manifest.Options) error {
	files, err := manifest.All(options)
	if err != nil {
		return err
	}
	for _, file := range files {
		name := path.Join(folder, inPackage(file))
		wanted, err := parse(file, map[string]string{
			kioutil.PathAnnotation:  name,
			kioutil.IndexAnnotation: "0",
		})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list.Items, func(item *yaml.RNode) bool { return pathOf(item) == name })
		switch {
		case i < 0:
			list.Items = append(list.Items, wanted)
		case wanted.GetKind() == "MutatingWebhookConfiguration":
			if err := setWebhooks(list.Items[i], wanted); err != nil {
				return err
			}
		default:
			list.Items[i] = wanted
		}
	}
	return nil
}
