package main

import (
	"regexp"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
)

// TestRecipeOfPolicies: the page's patches replace what they say, and nothing beside it.
// tools/e2e/conditions evaluates the values.
func TestRecipeOfPolicies(t *testing.T) {
	text := recipe(t, "name: imds-audiences}")
	r := decode(t, renderMine(t, text, nil))
	values := regexp.MustCompile(`value: '([^\n]*)'}`).FindAllStringSubmatch(text, -1)
	if len(values) != 2 {
		t.Fatalf("%d values in\n%s", len(values), text)
	}
	for policy, want := range map[string]admissionregistrationv1.Variable{
		"imds-audiences": {Name: "allowed", Expression: values[0][1]},
		"imds-opt-in":    {Name: "label", Expression: values[1][1]},
	} {
		if got := r.policies[policy].Spec.Variables[0]; got != want {
			t.Errorf("%s: %+v, want %+v", policy, got, want)
		}
	}
}

// TestPoliciesNeedNothingElse: the API server reads the parameters of a policy before its
// match conditions, so that without them it would refuse VMs of who never asked. Nothing
// in them depends on a namespace that may be another, or gone.
func TestPoliciesNeedNothingElse(t *testing.T) {
	const mine = "resources: [../kubevirt-imds/overlays/cert-manager]\ncomponents: [../kubevirt-imds/kustomize/components/policy]\n"
	r := decode(t, renderMine(t, mine, nil))
	if len(r.policies) != 2 || len(r.bindings) != 2 {
		t.Fatalf("%d policies, %d bindings", len(r.policies), len(r.bindings))
	}
	for name, policy := range r.policies {
		binding := r.bindings[name]
		if binding == nil || binding.Spec.PolicyName != name || len(binding.Spec.ValidationActions) != 1 || binding.Spec.ValidationActions[0] != admissionregistrationv1.Deny {
			t.Errorf("policy %s has the binding %+v", name, binding)
			continue
		}
		if policy.Spec.ParamKind != nil || binding.Spec.ParamRef != nil {
			t.Errorf("policy %s: parameters %+v, the binding has %+v", name, policy.Spec.ParamKind, binding.Spec.ParamRef)
		}
		if len(policy.Spec.MatchConditions) == 0 {
			t.Errorf("policy %s is about VMs of who never asked", name)
		}
	}
}
