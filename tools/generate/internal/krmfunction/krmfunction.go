// Package krmfunction is the generator as a KRM function: ResourceList in,
// ResourceList out, for kpt and for kustomize.
//
// In a kpt package it writes the generated files again, with the package's own
// setters. In any other list it brings the MutatingWebhookConfiguration and the
// ConfigMap with the patches: what `kustomize build` can apply.
package krmfunction

import (
	"fmt"
	"io"
	"path"
	"strings"

	"sigs.k8s.io/kustomize/kyaml/fn/framework"
	"sigs.k8s.io/kustomize/kyaml/kio"
	"sigs.k8s.io/kustomize/kyaml/kio/kioutil"
	"sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
)

// Run reads a ResourceList and writes it with our resources brought up to date.
func Run(in io.Reader, out io.Writer) error {
	return framework.Execute(framework.ResourceListProcessorFunc(process),
		&kio.ByteReadWriter{Reader: in, Writer: out, KeepReaderAnnotations: true})
}

func process(list *framework.ResourceList) error {
	options, err := readOptions(list.FunctionConfig)
	if err != nil {
		return err
	}
	if folder, found := packageFolder(list.Items); found {
		return updatePackage(list, folder, options)
	}
	return updateResources(list, options)
}

// updateResources updates the configuration and the ConfigMap by their names.
func updateResources(list *framework.ResourceList, options manifest.Options) error {
	configuration, err := manifest.Configuration(options)
	if err != nil {
		return err
	}
	if err := upsertConfiguration(list, configuration); err != nil {
		return err
	}
	patches, err := manifest.Patches(options)
	if err != nil {
		return err
	}
	return upsertConfigMap(list, options.Namespace, patches)
}

func upsertConfiguration(list *framework.ResourceList, file manifest.File) error {
	wanted, err := parse(file, nil)
	if err != nil {
		return err
	}
	for _, item := range list.Items {
		if item.GetKind() == wanted.GetKind() && item.GetName() == wanted.GetName() {
			return setWebhooks(item, wanted)
		}
	}
	list.Items = append(list.Items, wanted)
	return nil
}

// setWebhooks makes the webhooks of item those of wanted. What others add to the
// configuration stays: its metadata, and the caBundle of each webhook.
func setWebhooks(item, wanted *yaml.RNode) error {
	webhooks := wanted.Field("webhooks").Value
	if existing := item.Field("webhooks"); existing != nil {
		err := webhooks.VisitElements(func(webhook *yaml.RNode) error {
			name, err := webhook.GetString("name")
			if err != nil {
				return err
			}
			bundle, err := existing.Value.Pipe(yaml.Lookup("[name="+name+"]", "clientConfig", "caBundle"))
			if err != nil || bundle == nil {
				return err
			}
			return webhook.PipeE(yaml.Lookup("clientConfig"), yaml.SetField("caBundle", bundle))
		})
		if err != nil {
			return err
		}
	}
	return item.PipeE(yaml.SetField("webhooks", webhooks))
}

func upsertConfigMap(list *framework.ResourceList, namespace string, files []manifest.File) error {
	patches := map[string]string{}
	for _, file := range files {
		patches[path.Base(file.Path)] = string(file.Content)
	}
	for _, item := range list.Items {
		if item.GetKind() == "ConfigMap" && item.GetName() == contract.PatchesConfigMap {
			return item.LoadMapIntoConfigMapData(patches)
		}
	}
	// The name gets a hash, so that a change rolls the webhook's Deployment, as
	// with a configMapGenerator.
	configMap, err := yaml.Parse(fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata:
  name: %s
  namespace: %s
  annotations:
    kustomize.config.k8s.io/needs-hash: "true"
`, contract.PatchesConfigMap, namespace))
	if err != nil {
		return err
	}
	list.Items = append(list.Items, configMap)
	return configMap.LoadMapIntoConfigMapData(patches)
}

// inPackage is the file's path in the kpt package.
func inPackage(file manifest.File) string {
	return strings.TrimPrefix(file.Path, manifest.Package+"/")
}

// parse reads a generated file as a resource with annotations. The style of its
// lists is kept for a tool that writes it to a file, and annotations says so.
func parse(file manifest.File, annotations map[string]string) (*yaml.RNode, error) {
	reader := kio.ByteReader{
		Reader:                strings.NewReader(string(file.Content)),
		OmitReaderAnnotations: annotations == nil,
		PreserveSeqIndent:     annotations != nil,
		SetAnnotations:        annotations,
	}
	items, err := reader.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path, err)
	}
	return items[0], nil
}

// pathOf is where the resource's file is, relative to what the tool reads;
// empty when it does not come from a file.
func pathOf(item *yaml.RNode) string {
	return item.GetAnnotations()[kioutil.PathAnnotation]
}
