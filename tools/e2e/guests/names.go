package guests

import (
	"slices"

	"github.com/example/kubevirt-imds/tools/e2e/guests/accidents"
	"github.com/example/kubevirt-imds/tools/e2e/guests/attacks"
	"github.com/example/kubevirt-imds/tools/e2e/guests/bindings"
)

// Names are those of all checks.
func Names() []string {
	names := slices.Concat(accidents.Names(), attacks.Names(), bindings.Names())
	for _, subject := range subjects {
		for _, c := range subject.checks(nil) {
			names = append(names, subject.name+"/"+c.Name)
		}
	}
	return names
}
