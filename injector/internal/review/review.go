// Package review decides about VMs, instances and virt-launcher pods. What a user writes is refused where it
// is wrong; what was admitted once, and what a controller makes of it, is served, or told why not.
package review

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// Reviewer has one Func for each kind of object.
type Reviewer struct {
	patches *patchset.Set
	version string // of this program
	log     *slog.Logger
}

// New returns a Reviewer that applies the patches to pods.
func New(patches *patchset.Set, version string, log *slog.Logger) *Reviewer {
	return &Reviewer{patches, version, log}
}

// expect has a request decided if it is for such a resource and operation.
func (r *Reviewer) expect(decide Func, request *Request, resource string, operations ...string) Verdict {
	if request.Resource != resource || request.SubResource != "" || !slices.Contains(operations, request.Operation) {
		problem := fmt.Sprintf("imds-webhook reviews %s of %s, not %s: check the rules of its configuration",
			strings.Join(operations, " and "), resource, request.action())
		r.logOf(request).Warn("not for a review", "problem", problem)
		return Allow(problem)
	}
	request.metadata = request.Object.Get("metadata").Fields("name", "generateName", "annotations", "labels", "ownerReferences", "deletionTimestamp")
	// A client may give one to what it creates, from which the API server takes it away afterwards.
	if request.Operation != Create && !request.metadata["deletionTimestamp"].IsNull() {
		return Allow() // on its way out, it is updated to drop its finalizers
	}
	return decide(request)
}

// subject is what is judged of a VM or an instance.
type subject struct {
	annotations, meant annotations
	problems           []string       // in the annotations, which are meant so
	spec               jsontree.Value // of a VirtualMachineInstance
}

func newSubject(a annotations, spec jsontree.Value) subject {
	meant, problems := a.understood()
	return subject{a, meant, problems, spec}
}

// judge compares a subject with what it was, which is nothing at its creation. Only what this very request
// brings in is refused: otherwise a rule of today would stop every controller that updates an object of
// yesterday. And a change of the networks is KubeVirt's to judge. changed: an update changes the annotations.
func (r *Reviewer) judge(request *Request, now, old subject) (verdict Verdict, way wiring, changed bool) {
	created := request.Operation == Create
	way, changed = now.wiring(), !created && !maps.Equal(now.annotations, old.annotations)
	refuses := !now.annotations.decline() && !request.isByKubeVirt() && !(created && controllerOf(request.metadata["ownerReferences"]) != nil)
	verdict = Allow()
	var fresh []string // what this request brings in: the client may drop warnings
	by := ""
	sort := func(reason string, problems, before []string) {
		for _, problem := range problems {
			if isNew := !slices.Contains(before, problem); isNew {
				fresh, by = append(fresh, problem), cmp.Or(by, reason)
			}
			verdict.Warnings = append(verdict.Warnings, problem)
		}
	}
	before, wiringBefore := old.annotations.problems(), way.problems
	if now.annotations.ask() && !old.annotations.ask() {
		before = nil // what was wrong all the time begins to count
	}
	if created || changed {
		wiringBefore = old.wiring().problems
	}
	sort(byAnnotation, now.annotations.problems(), before)
	sort(bySpec, way.problems, wiringBefore)
	if fresh != nil && refuses {
		return r.refuse(request, by, join(fresh)), way, changed
	} else if fresh != nil {
		verdict.Outcome = Outcome{tolerated, by}
		r.logOf(request).Warn("not refused, since a controller made it", "what", request.action(), "name", request.ObjectName(), "problems", join(fresh))
	}
	verdict.Warnings = some(append(verdict.Warnings, way.warnings...))
	return verdict, way, changed
}

// maxProblems keeps a message readable and its size bounded.
const maxProblems = 12

func some(problems []string) []string {
	if more := len(problems) - maxProblems; more > 0 {
		return append(slices.Clone(problems[:maxProblems]), fmt.Sprintf("and %d more", more))
	}
	return problems
}

// join makes one message of problems.
func join(problems []string) string { return strings.Join(some(problems), "; ") }

// Repair returns a Func that never refuses: what another one would is a warning.
func (r *Reviewer) Repair(decide Func) Func {
	return func(request *Request) Verdict {
		verdict := decide(request)
		if !verdict.Allowed {
			reason := verdict.Outcome.Reason
			verdict = Allow(verdict.Reason)
			verdict.Outcome = Outcome{tolerated, reason}
		}
		return verdict
	}
}

// logOf logs about a request and who has sent it: anybody who reaches the webhook can.
func (r *Reviewer) logOf(request *Request) *slog.Logger {
	return r.log.With("namespace", request.Namespace, "remote", request.Remote)
}

// refuse denies the request and logs it.
func (r *Reviewer) refuse(request *Request, by, reason string) Verdict {
	r.logOf(request).Warn("refused", "what", request.action(), "name", request.ObjectName(), "reason", reason)
	return Verdict{Reason: reason, Outcome: Outcome{refused, by}}
}

// controllerOf returns the ownerReference of the controller, of which the API server admits one.
func controllerOf(owners jsontree.Value) jsontree.Value {
	for owner := range owners.Elements() {
		if owner.Get("controller").IsTrue() {
			return owner
		}
	}
	return nil
}
