package checks

// kind needs nobody: the webhook makes its own certificate and writes its own caBundle.
var kind = overlay{
	name: "kind",
	rights: []right{{
		Verbs:         []string{"get", "patch"},
		APIGroups:     []string{"admissionregistration.k8s.io"},
		Resources:     []string{"mutatingwebhookconfigurations"},
		ResourceNames: []string{webhook},
	}},
}
