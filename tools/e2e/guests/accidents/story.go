package accidents

import (
	"context"
	"fmt"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// story is one guest and all that happens to it.
type story struct {
	t       *suite.T
	vm      *stage.VM
	binding podnet.Binding
	changes *changes
	before  *state // of the pod, before the first accident
	held    map[string]int

	unruled windows // while somebody had the rules of the bridge deleted
}

// runStory makes the accidents of one binding happen that are selected. They are inside one check, which lasts as
// long as their pod: it fails where the pod itself does, or anything of ours was on its uplink.
func runStory(ctx context.Context, s *stage.Stage, results *suite.Suite, binding podnet.Binding) {
	name := "accidents/" + string(binding)
	rows := rowsOf(binding)
	selected := rows[:0]
	for _, r := range rows {
		if results.Selects(name+"/"+r.name, verdicts(nil)) {
			selected = append(selected, r)
		}
	}
	if len(selected) == 0 {
		return
	}
	results.Must(ctx, name, podCheck(func(t *suite.T) {
		story := begin(t, s, stage.Options{
			Name:    "accidents-" + string(binding),
			Network: podnet.Options{Binding: binding},
		})
		for _, r := range selected {
			results.Run(ctx, name+"/"+r.name, verdicts(r.run(story)))
		}
	}))
}

// podCheck is the check of the pod in which something happens.
func podCheck(run func(*suite.T)) suite.Check {
	return suite.Check{
		Name:   "pod",
		Proves: "the pod of the accidents starts and ends, and lets nothing of ours out by its uplink meanwhile",
		Run:    run,
	}
}

// begin starts a VM and remembers how its pod is then.
func begin(t *suite.T, s *stage.Stage, options stage.Options) *story {
	vm := s.Start(t, options)
	story := &story{t: t, vm: vm, binding: options.Network.Binding}
	vm.Expected = story.unruled.mayLeave
	// With answers given, both sidecars have opened what they keep open.
	vm.AwaitAnswers(3)
	var err error
	story.changes, err = watchChanges(vm.Net.Pod)
	t.Check(err)
	t.Cleanup(story.changes.close)
	story.before, err = readState(vm.Net.Pod)
	t.Check(err)
	story.held = story.descriptors()
	return story
}

// tableRow is an accident, or several, that are measured as one.
type tableRow struct {
	name string
	run  func(*story) *measured
}

func rowsOf(binding podnet.Binding) []tableRow {
	var rows []tableRow
	for _, a := range accidentsOf(binding) {
		rows = append(rows, tableRow{a.name, func(s *story) *measured { return s.measure(a) }})
	}
	rows = append(rows, reboots...)
	return append(rows, tableRow{fmt.Sprintf("%d-in-a-row", manyAccidents), (*story).measureMany})
}
