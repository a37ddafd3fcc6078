package main

import (
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
)

func TestRecipeOfAudiences(t *testing.T) {
	r := decode(t, renderMine(t, recipe(t, "audiences: | # one a line"), nil))
	if got := r.custom["ConfigMap/imds-policy"]["data"].(map[string]any)["audiences"]; got != "vault\nsts.amazonaws.com" {
		t.Errorf("audiences %q", got)
	}
}

// TestPoliciesFindWhatTheyName: each binding its policy, and the audiences' policy its
// parameters, in another namespace too.
func TestPoliciesFindWhatTheyName(t *testing.T) {
	const mine = "resources: [../kubevirt-imds/overlays/cert-manager]\ncomponents: [../kubevirt-imds/kustomize/components/policy]\n"
	for namespace, kustomization := range map[string]string{
		"kubevirt-imds": mine,
		"platform-imds": mine + "namespace: platform-imds\ntransformers: [../kubevirt-imds/kustomize/namespace]\n",
	} {
		r := decode(t, renderMine(t, kustomization, nil))
		for name, policy := range r.policies {
			binding := r.bindings[name]
			if binding == nil || binding.Spec.PolicyName != name || len(binding.Spec.ValidationActions) != 1 || binding.Spec.ValidationActions[0] != admissionregistrationv1.Deny {
				t.Errorf("policy %s has the binding %+v", name, binding)
			}
			if hasParameters := binding.Spec.ParamRef != nil; hasParameters != (policy.Spec.ParamKind != nil) {
				t.Errorf("policy %s: parameters %+v, the binding has %+v", name, policy.Spec.ParamKind, binding.Spec.ParamRef)
			}
		}
		parameters := r.bindings["imds-audiences"].Spec.ParamRef
		metadata := r.custom["ConfigMap/imds-policy"]["metadata"].(map[string]any)
		if parameters.Name != "imds-policy" || parameters.Namespace != namespace || metadata["namespace"] != namespace || *parameters.ParameterNotFoundAction != admissionregistrationv1.DenyAction {
			t.Errorf("parameters %+v, the ConfigMap is in %v, want %s", parameters, metadata["namespace"], namespace)
		}
	}
}
