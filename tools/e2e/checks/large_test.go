package checks

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

const (
	// largeCount of annotations are 938 KiB, near to the most that etcd stores.
	largeCount = 80000
	// largeRatio bounds the time of a write in units of the time of the same write of a kind that no webhook has.
	// Both are made in turn, so that a busy machine slows both.
	largeRatio = 3
	// largeRounds of writes are made, and the fastest of them counts.
	largeRounds = 2
)

// large is an object that has its annotations where a VM has those of its instances. As an Issuer it is of a kind that
// no webhook of the product is called for.
type large struct {
	kind, apiVersion, collection string
	create, update               time.Duration
}

// writesLarge creates by a dry run, and updates a stored object, both with all the annotations: whoever made it has the
// API server keep none of the fields' owners, which would take it beyond what etcd stores.
func (in *installation) writesLarge(t *testing.T) {
	check(t, in.outage())
	vm := &large{kind: "VirtualMachine", apiVersion: "kubevirt.io/v1", collection: virtualMachinesPath}
	reference := &large{kind: "Issuer", apiVersion: certManagerGroup + "/v1", collection: "/apis/" + certManagerGroup + "/v1/namespaces/" + tenant + "/issuers"}
	for _, l := range []*large{vm, reference} {
		check(t, l.store(t, in))
	}
	for range largeRounds {
		for _, l := range []*large{vm, reference} {
			check(t, l.write(t.Context(), in))
		}
	}
	results.Figure(t, "%.1f and %.1f times as long", vm.create.Seconds()/reference.create.Seconds(), vm.update.Seconds()/reference.update.Seconds())
	t.Logf("CREATE takes %s, of an Issuer %s; UPDATE %s, of an Issuer %s", vm.create, reference.create, vm.update, reference.update)
	if vm.create > largeRatio*reference.create || vm.update > largeRatio*reference.update {
		t.Errorf("want at most %d times as long", largeRatio)
	}
}

func (l *large) object(name string, annotations map[string]string) any {
	return map[string]any{
		"kind": l.kind, "apiVersion": l.apiVersion, "metadata": map[string]any{"name": name},
		"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": annotations}}},
	}
}

func largeAnnotations() map[string]string {
	annotations := map[string]string{}
	for i := range largeCount {
		annotations[fmt.Sprintf("a%05d", i)] = ""
	}
	return annotations
}

// store makes the object that write updates.
func (l *large) store(t *testing.T, in *installation) error {
	empty := l.object("large", nil)
	if _, err := kube.Create(t.Context(), in.api, l.collection, &empty); err != nil {
		return err
	}
	path := l.collection + "/large"
	t.Cleanup(func() { check(t, in.api.Delete(context.Background(), path)) })
	noOwners := map[string]any{"metadata": map[string]any{"managedFields": []any{metav1.ManagedFieldsEntry{}}}}
	if err := in.api.Patch(t.Context(), path, kube.MergePatch, noOwners); err != nil {
		return err
	}
	return in.api.Patch(t.Context(), path, kube.MergePatch, l.object("large", largeAnnotations()))
}

// write makes both writes and keeps the shortest times.
func (l *large) write(ctx context.Context, in *installation) error {
	full := l.object("large-too", largeAnnotations())
	begin := time.Now()
	if _, err := kube.DryRun(ctx, in.api, l.collection, &full); err != nil {
		return err
	}
	created := time.Now()
	label := map[string]any{"metadata": map[string]any{"labels": map[string]any{"example.org/round": fmt.Sprint(created.UnixNano())}}}
	if err := in.api.Patch(ctx, l.collection+"/large", kube.MergePatch, label); err != nil {
		return err
	}
	l.create, l.update = shortest(l.create, created.Sub(begin)), shortest(l.update, time.Since(created))
	return nil
}

// shortest is the shorter time, where zero is none yet.
func shortest(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}
