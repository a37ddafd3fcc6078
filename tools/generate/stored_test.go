package main

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// A server-side apply after another one conflicts, and Argo CD shows a difference, where a
// manifest leaves out what the API server adds to a part that is stored as a whole, or
// writes a value otherwise. tools/e2e does a server-side apply.

// notAsStored are the places in a manifest of which this is so.
func notAsStored(place string, value any) (problems []string) {
	switch value := value.(type) {
	case []any:
		for i, inner := range value {
			problems = append(problems, notAsStored(fmt.Sprintf("%s[%d]", place, i), inner)...)
		}
	case map[string]any:
		for name, inner := range value {
			at := place + "." + name
			fields, _ := inner.(map[string]any)
			var want []string
			switch name {
			case "fieldRef":
				want = []string{"apiVersion"}
			case "matchConstraints", "matchResources":
				want = []string{"matchPolicy", "namespaceSelector", "objectSelector"}
			case "hard", "limits", "requests":
				for quantity, text := range fields {
					if parsed, err := resource.ParseQuantity(fmt.Sprint(text)); err != nil || parsed.String() != text {
						problems = append(problems, fmt.Sprintf("%s.%s: %v is stored as %q (%v)", at, quantity, text, parsed.String(), err))
					}
				}
			}
			for _, field := range want {
				if fields[field] == nil {
					problems = append(problems, at+" has no "+field)
				}
			}
			problems = append(problems, notAsStored(at, inner)...)
		}
	}
	return problems
}

func TestManifestsAreAsStored(t *testing.T) {
	for _, components := range [][]string{
		{"self-signed", "policy", "metrics", "single-replica"},
		{"cert-manager", "node-agent", "openshift", "openshift-webhook", "node-agent-metrics", "node-agent-seccomp"},
	} {
		content, err := loadTree(t).BuildWith("kustomize/base", components...)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "\n---\n") {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(document), &object); err != nil {
				t.Fatal(err)
			}
			for _, problem := range notAsStored(fmt.Sprint(object["kind"]), object) {
				t.Error(problem)
			}
		}
	}
}
