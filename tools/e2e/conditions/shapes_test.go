package conditions

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A condition that fails refuses the object, whoever's it is, so none may fail on
// anything that the API server can store: objects down to the metadata of a VM's
// template, as KubeVirt's schema says, and below that whatever somebody likes.

func TestNoShapeMakesAConditionFail(t *testing.T) {
	server := newAPIServer(t)
	long := strings.Repeat("x", 100_000)
	templates := []string{
		`{}`,
		`spec: null`,
		`spec: {}`,
		`spec: {template: null}`,
		`spec: {template: {}}`,
		`spec: {template: {metadata: null, spec: null}}`,
		`spec: {template: {metadata: {}, spec: {}}}`,
		`spec: {template: {metadata: {annotations: null}, spec: {domain: null, networks: null}}}`,
		`spec: {template: {metadata: {annotations: {}}, spec: {domain: {devices: null}}}}`,
		`spec: {template: {metadata: {annotations: []}, spec: {domain: {devices: {interfaces: null}}}}}`,
		`spec: {template: {metadata: {annotations: [imds.kubevirt.io/enabled]}, spec: {domain: {devices: {interfaces: {}}}}}}`,
		`spec: {template: {metadata: {annotations: [[[{imds.kubevirt.io/enabled: "true"}]]]}, spec: {networks: {a: b}}}}`,
		`spec: {template: {metadata: {annotations: "imds.kubevirt.io/enabled"}, spec: {networks: "pod"}}}`,
		`spec: {template: {metadata: {annotations: 1}}}`,
		`spec: {template: {metadata: {annotations: 1.5}}}`,
		`spec: {template: {metadata: {annotations: true}}}`,
		`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: true}}}}`,
		`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: null}}}}`,
		`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: 1, imds.kubevirt.io/hop-limit: 1.5}}}}`,
		`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: ["true"], imds.kubevirt.io/network: {a: [b, {c: null}]}}}}}`,
		`spec: {template: {metadata: {annotations: {"": "", "imds.kubevirt.io/": {}, "imds.kubevirt.io": []}}}}`,
		`spec: {template: {metadata: {annotations: {? imds.kubevirt.io/` + long + ` : "` + long + `"}}}}`,
		`spec: {template: {metadata: {annotations: {? ` + long + ` : [` + long + `]}}}}`,
		`spec: {template: "text"}`,
		`spec: {template: {metadata: 1, spec: {domain: 1}}}`,
		`spec: "text"`,
		asking,
	}
	metadata := []string{
		`{}`,
		`metadata: {annotations: null}`,
		`metadata: {annotations: {}}`,
		`metadata: {annotations: {example.com/owner: team-a}}`,
		`metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}`,
		`metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}`,
		`metadata: {annotations: {imds.kubevirt.io/enable: ""}}`,
	}
	for _, kind := range []schema.GroupVersionKind{vmKind, instanceKind} {
		var objects []*unstructured.Unstructured
		for _, template := range templates {
			for _, patch := range metadata {
				object := merged(custom(kind, template), patch)
				objects = append(objects, object)
				if kind == instanceKind { // its spec is what is in a VM's template
					spec, _, _ := unstructured.NestedFieldNoCopy(object.Object, "spec", "template", "spec")
					object.Object["spec"] = spec
				}
			}
		}
		for i, object := range objects {
			server.check(t, request{object: object})
			server.check(t, request{object: object, old: object})
			server.check(t, request{object: object, old: objects[(i*31+17)%len(objects)]})
			server.check(t, request{object: object, old: objects[0]})
			server.check(t, request{object: objects[0], old: object})
		}
	}
}

func TestNoRandomObjectMakesAConditionFail(t *testing.T) {
	server := newAPIServer(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 0))}
	sent := map[string]int{}
	for range 5000 {
		kind := []schema.GroupVersionKind{vmKind, instanceKind}[g.IntN(2)]
		object := g.resource(kind)
		r := request{object: object}
		if g.IntN(4) > 0 {
			old := g.resource(kind)
			if g.IntN(2) == 0 { // most updates change little
				old = object.DeepCopy()
				old.Object[[]string{"metadata", "spec"}[g.IntN(2)]] = g.resource(kind).Object["metadata"]
				old.Object["spec"] = g.resource(kind).Object["spec"]
			}
			r.old = old
		}
		for _, name := range server.check(t, r) {
			sent[name]++
		}
		if t.Failed() {
			t.Fatalf("by %v", r)
		}
	}
	t.Logf("sent: %v", sent)
	for _, name := range []string{refuseVMs, repairVMs, refuseInstances, repairInstances} {
		if sent[name] == 0 {
			t.Errorf("no object reached %s: the generator is of no use", name)
		}
	}
}

// check fails where a condition or a policy fails, where both webhooks of a kind get a
// request, and where an object without a name of ours reaches one or is refused.
func (s *apiServer) check(t *testing.T, r request) []string {
	t.Helper()
	sent := s.sent(t, r)
	if len(sent) > 1 {
		t.Errorf("sent to %v", sent)
	}
	var refused string
	for _, policy := range s.policies {
		refused += refusal(t, policy, r, &corev1.Namespace{})
	}
	if (len(sent) > 0 || refused != "") && !strings.Contains(fmt.Sprint(r.object, r.old), "imds.kubevirt.io/") {
		t.Errorf("without an annotation of ours, sent to %v, refused with %q", sent, refused)
	}
	return sent
}

// generator makes objects that are likely to be looked into.
type generator struct{ *rand.Rand }

var names = []string{
	"imds.kubevirt.io/enabled", "imds.kubevirt.io/enabled", "imds.kubevirt.io/network", "imds.kubevirt.io/hop-limit",
	"imds.kubevirt.io/enable", "imds.kubevirt.io/redirect-port", "verdict.imds.kubevirt.io/wiring", "example.com/a", "",
}

func (g generator) resource(kind schema.GroupVersionKind) *unstructured.Unstructured {
	object := custom(kind, `{}`)
	annotations := map[string]string{}
	for range g.IntN(4) {
		annotations[names[g.IntN(len(names))]] = []string{"true", "false", "", "1"}[g.IntN(4)]
	}
	if len(annotations) > 0 {
		object.SetAnnotations(annotations)
	}
	spec := g.maybe(func() any {
		return map[string]any{"networks": g.value(2), "domain": g.maybe(func() any {
			return map[string]any{"devices": g.maybe(func() any {
				return map[string]any{"interfaces": g.value(3), "autoattachPodInterface": g.value(0)}
			})}
		})}
	})
	if kind == vmKind {
		spec = g.maybe(func() any {
			return map[string]any{"template": g.maybe(func() any {
				return map[string]any{"spec": spec, "metadata": g.maybe(func() any { return g.object(3) })}
			})}
		})
	}
	object.Object["spec"] = spec
	return object
}

// maybe returns an object of the schema, or what else is in its place.
func (g generator) maybe(object func() any) any {
	if g.IntN(6) > 0 {
		return object()
	}
	return []any{nil, "text", int64(1), map[string]any{}}[g.IntN(4)]
}

func (g generator) value(depth int) any {
	switch g.IntN(6 + min(depth, 1)*6) {
	case 0:
		return nil
	case 1:
		return g.IntN(2) == 0
	case 2:
		return int64(g.IntN(3))
	case 3:
		return 1.5
	case 4, 5:
		return []string{"true", "false", "", "text"}[g.IntN(4)]
	case 6, 7:
		list := []any{}
		for range g.IntN(3) {
			list = append(list, g.value(depth-1))
		}
		return list
	default:
		return g.object(depth - 1)
	}
}

func (g generator) object(depth int) map[string]any {
	object := map[string]any{}
	for range g.IntN(4) {
		object[names[g.IntN(len(names))]] = g.value(depth)
	}
	if g.IntN(3) > 0 {
		object["annotations"] = g.value(depth)
	}
	return object
}
