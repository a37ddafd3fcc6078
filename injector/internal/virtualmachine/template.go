package virtualmachine

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// syncTemplate brings the imds.kubevirt.io/ annotations of vm's template in
// line with those of its metadata. Where both have one, the metadata's wins,
// with a warning when somebody wrote another into the template. One that the update takes out of the metadata is taken out
// of the template too, unless the template has a value of its own. An error
// means that vm has no place for annotations in its template.
func syncTemplate(vm, old jsontree.Object) (warnings []string, err error) {
	wanted, before := metadataAnnotations(vm), metadataAnnotations(old)
	if len(wanted) > 0 {
		template, err := jsontree.Ensure(vm, "spec", "template", "metadata", "annotations")
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(wanted)) {
			own, found := template[name]
			copied := reflect.DeepEqual(own, before[name]) // by us, from the metadata as it was
			if found && !copied && !reflect.DeepEqual(own, wanted[name]) {
				warnings = append(warnings, fmt.Sprintf("%s: %s of metadata.annotations replaces %s of spec.template.metadata.annotations",
					name, annotation.Quote(wanted[name]), annotation.Quote(own)))
			}
			template[name] = wanted[name]
		}
	}
	template := jsontree.LookupObject(vm, "spec", "template", "metadata", "annotations")
	for name, value := range before {
		if _, kept := wanted[name]; !kept && reflect.DeepEqual(template[name], value) {
			delete(template, name)
		}
	}
	return warnings, nil
}
