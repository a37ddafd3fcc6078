package accidents

import (
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// Names are those of all checks.
func Names() []string {
	var names []string
	add := func(subject string, checks []suite.Check) {
		for _, c := range checks {
			names = append(names, subject+"/"+c.Name)
		}
	}
	for _, long := range []*alone{guestPaused(nil), tokenRotated(nil)} {
		add(long.subject, append(long.columns, long.pod))
	}
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		subject := "accidents/" + string(binding)
		add(subject, []suite.Check{podCheck(nil)})
		for _, r := range rowsOf(binding) {
			add(subject+"/"+r.name, verdicts(nil))
		}
	}
	return names
}
