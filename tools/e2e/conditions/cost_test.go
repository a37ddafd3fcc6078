package conditions

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// The conditions are evaluated for objects of people who never asked, and an object
// may have 1 MB of annotations: neither may cost the API server more for it.

// sized is a request with many annotations, and in which of the two places.
type sized struct {
	name        string
	annotations int
	request     request
}

// annotated are requests for each kind, operation and place, with annotations of
// 1 MB in all.
func annotated(annotations int) []sized {
	values := func(changed string) map[string]any {
		all := map[string]any{}
		value := strings.Repeat("v", (1<<20)/annotations-12)
		for i := range annotations {
			all[fmt.Sprintf("a/%d", i)] = value
		}
		all["a/0"] = changed
		return all
	}
	var all []sized
	add := func(name string, object, old runtime.Object) {
		all = append(all, sized{name + " CREATE", annotations, request{object: object}}, sized{name + " UPDATE", annotations, request{object: object, old: old}})
	}
	inMetadata := func(of func(string) *unstructured.Unstructured, changed string) *unstructured.Unstructured {
		object := of(others)
		object.Object["metadata"].(map[string]any)["annotations"] = values(changed)
		return object
	}
	inTemplate := func(changed string) *unstructured.Unstructured {
		object := vm(others)
		object.Object["spec"].(map[string]any)["template"].(map[string]any)["metadata"] = map[string]any{"annotations": values(changed)}
		return object
	}
	add("VM, metadata", inMetadata(vm, "new"), inMetadata(vm, "old"))
	add("VM, template", inTemplate("new"), inTemplate("old"))
	add("instance", inMetadata(instance, "new"), inMetadata(instance, "old"))
	ofPod := map[string]string{}
	for name, value := range values("new") {
		ofPod[name] = value.(string)
	}
	all = append(all, sized{"pod CREATE", annotations, request{object: &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"kubevirt.io": "virt-launcher"}, Annotations: ofPod},
	}}})
	return all
}

// price is what the conditions of all webhooks cost for a request.
type price struct {
	cost int64
	time time.Duration
}

func (s *apiServer) price(t *testing.T, r request) price {
	t.Helper()
	var total price
	attributes := r.attributes()
	for i := range s.webhooks {
		if !selects(t, &s.webhooks[i], attributes) {
			continue
		}
		for j, condition := range s.conditions[i] {
			start := time.Now()
			cost, err := evaluate(t, condition, r)
			total.time += time.Since(start)
			total.cost += cost
			if err != nil {
				t.Errorf("%s: condition %s fails: %v", s.webhooks[i].Name, s.webhooks[i].MatchConditions[j].Name, err)
			}
		}
	}
	return total
}

func TestCostDoesNotGrowWithAnnotations(t *testing.T) {
	server := newAPIServer(t)
	few, many, most := annotated(10), annotated(1_000), annotated(80_000)
	for i := range few {
		t.Run(few[i].name, func(t *testing.T) {
			var prices []price
			for _, sized := range []sized{few[i], many[i], most[i]} {
				server.expect(t, sized.request, "")
				best := server.price(t, sized.request)
				for range 5 { // the least of a few: another process may have had the processor
					best.time = min(best.time, server.price(t, sized.request).time)
				}
				t.Logf("%6d annotations: cost %5d, %v", sized.annotations, best.cost, best.time)
				prices = append(prices, best)
			}
			if prices[1].cost != prices[2].cost {
				t.Errorf("cost %d for 1,000 and %d for 80,000: something walks a map without a bound", prices[1].cost, prices[2].cost)
			}
			if ratio := float64(prices[2].time) / float64(prices[0].time); ratio > 100 {
				t.Errorf("80,000 annotations take %.0f times as long as 10", ratio)
			}
		})
	}
}

// TestCostOfTheLargestWalk: as many annotations as are walked, all with our prefix,
// large, and unchanged, so that each is compared to its end; in both places.
func TestCostOfTheLargestWalk(t *testing.T) {
	server := newAPIServer(t)
	var annotations strings.Builder
	for i := range 64 {
		fmt.Fprintf(&annotations, "imds.kubevirt.io/%d: %s, ", i, strings.Repeat("v", 8_000))
	}
	object := vm("metadata: &metadata {annotations: {" + annotations.String() + "}}\nspec: {template: {metadata: *metadata}}")
	cost := server.price(t, request{object: object, old: object.DeepCopy()}).cost
	t.Logf("cost %d", cost)
	if limit := int64(celconfig.RuntimeCELCostBudgetMatchConditions / 10); cost > limit {
		t.Errorf("cost %d, want a tenth of the API server's budget at most, %d", cost, limit)
	}
}
