package conditions

import (
	"os"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

const policyFolder = "../../../kustomize/components/policy/"

func readPolicy(t testing.TB, name string, into any) {
	t.Helper()
	content, err := os.ReadFile(policyFolder + name)
	if err == nil {
		err = yaml.UnmarshalStrict(content, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// validator compiles a policy as the API server does when it is applied, for the oldest
// Kubernetes that is supported.
func validator(t testing.TB, name string) validating.Validator {
	t.Helper()
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	readPolicy(t, "validatingadmissionpolicy-"+name+".yaml", &policy)
	spec := policy.Spec
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest))
	if err != nil {
		t.Fatal(err)
	}
	variables := cel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil, HasAuthorizer: true}
	var named []cel.NamedExpressionAccessor
	for _, variable := range spec.Variables {
		named = append(named, &validating.Variable{Name: variable.Name, Expression: variable.Expression})
	}
	compiler.CompileAndStoreVariables(named, variables, environment.NewExpressions)
	var conditions, validations, messages []cel.ExpressionAccessor
	for _, condition := range spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&condition))
	}
	for _, validation := range spec.Validations {
		validations = append(validations, &validating.ValidationCondition{Expression: validation.Expression, Message: validation.Message, Reason: validation.Reason})
		if validation.MessageExpression != "" {
			messages = append(messages, &validating.MessageExpressionCondition{MessageExpression: validation.MessageExpression})
		} else {
			messages = append(messages, nil)
		}
	}
	return validating.NewValidator(
		compiler.CompileCondition(validations, variables, environment.NewExpressions),
		matchconditions.NewMatcher(compiler.CompileCondition(conditions, variables, environment.NewExpressions), spec.FailurePolicy, "policy", "validate", policy.Name),
		compiler.CompileCondition(nil, variables, environment.NewExpressions),
		compiler.CompileCondition(messages, cel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil}, environment.NewExpressions),
		spec.FailurePolicy, nil)
}

// refusal is the message of a policy's refusal. An evaluation that fails is a fault of
// the test's subject.
func refusal(t testing.TB, policy validating.Validator, r request, audiences string) string {
	t.Helper()
	attributes := r.attributes()
	parameters := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "imds-policy"}, Data: map[string]string{"audiences": audiences}}
	result := policy.Validate(t.Context(), attributes.GetResource(), attributes, parameters, &corev1.Namespace{}, celconfig.RuntimeCELCostBudget, nil)
	message := ""
	for _, decision := range result.Decisions {
		if decision.Evaluation == validating.EvalError {
			t.Errorf("the policy fails: %s", decision.Message)
		}
		if decision.Action == validating.ActionDeny {
			message += decision.Message
		}
	}
	return message
}

const wantAudiences = `metadata: {annotations: {imds.kubevirt.io/enabled: "true", imds.kubevirt.io/token-audiences: "vault, sts.amazonaws.com"}}`

func TestPolicyOfNamespaces(t *testing.T) {
	policy := validator(t, "imds-opt-in")
	for name, test := range map[string]struct {
		request
		refused bool
	}{
		"a VM that never asked":        {request{object: vm(others)}, false},
		"an instance that never asked": {request{object: instance(plain)}, false},
		"annotations of another kind":  {request{object: vm(`spec: {template: {metadata: {annotations: [a]}}}`)}, false},
		"no string":                    {request{object: vm(`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: true}}}}`)}, false}, // the webhook's
		"declines":                     {request{object: vm(declining)}, false},
		"asks":                         {request{object: vm(asking)}, true},
		"asks by its template":         {request{object: vm(askingByTemplate)}, true},
		"an instance that asks":        {request{object: instance(unreviewed)}, true},
		"begins to ask":                {request{object: vm(asking), old: vm(others)}, true},
		"begins to ask again":          {request{object: vm(asking), old: vm(declining)}, true},
		"asked before":                 {request{object: merged(vm(asking), `spec: {runStrategy: Halted}`), old: vm(asking)}, false},
		"template is repaired":         {request{object: vm(asking), old: merged(vm(asking), `spec: {template: {metadata: null}}`)}, false},
		"an instance that is served":   {request{object: merged(instance(served), `status: {phase: Running}`), old: instance(served)}, false},
	} {
		if got := refusal(t, policy, test.request, ""); (got != "") != test.refused {
			t.Errorf("%s: %q", name, got)
		}
	}
	var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
	readPolicy(t, "validatingadmissionpolicybinding-imds-opt-in.yaml", &binding)
	selector, err := metav1.LabelSelectorAsSelector(binding.Spec.MatchResources.NamespaceSelector)
	if err != nil {
		t.Fatal(err)
	}
	for value, refuses := range map[string]bool{"true": false, "false": true} {
		if selector.Matches(labels.Set{"imds.kubevirt.io/allowed": value}) != refuses {
			t.Errorf("label %s: %v", value, !refuses)
		}
	}
	if !selector.Matches(labels.Set{}) {
		t.Error("a namespace without the label may ask")
	}
}

func TestPolicyOfAudiences(t *testing.T) {
	policy := validator(t, "imds-audiences")
	const both = "vault\n sts.amazonaws.com \n\n"
	for name, test := range map[string]struct {
		request
		allowed string
		refused bool
	}{
		"no audience":                  {request{object: vm(asking)}, "", false},
		"never asked":                  {request{object: vm(others)}, "", false},
		"audiences without the ask":    {request{object: vm(`metadata: {annotations: {imds.kubevirt.io/token-audiences: other}}`)}, both, false},
		"both allowed":                 {request{object: vm(wantAudiences)}, both, false},
		"one allowed":                  {request{object: vm(wantAudiences)}, "vault", true},
		"none allowed":                 {request{object: vm(wantAudiences)}, "", true},
		"a part of a name":             {request{object: vm(wantAudiences)}, "vault2\nsts.amazonaws.com", true},
		"in the template":              {request{object: merged(vm(askingByTemplate), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: other}}}}`)}, both, true},
		"no string":                    {request{object: merged(vm(asking), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: [other]}}}}`)}, both, false}, // the webhook's
		"an instance":                  {request{object: instance(wantAudiences)}, "vault", true},
		"asked for them before":        {request{object: merged(vm(wantAudiences), `spec: {runStrategy: Halted}`), old: vm(wantAudiences)}, "", false},
		"template is repaired":         {request{object: merged(vm(wantAudiences), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: "vault, sts.amazonaws.com"}}}}`), old: vm(wantAudiences)}, "", false},
		"one more":                     {request{object: merged(vm(wantAudiences), `metadata: {annotations: {imds.kubevirt.io/token-audiences: "vault, other"}}`), old: vm(wantAudiences)}, both, true},
		"the audiences before the ask": {request{object: vm(wantAudiences), old: merged(vm(wantAudiences), `metadata: {annotations: {imds.kubevirt.io/enabled: null}}`)}, "vault", true},
	} {
		if got := refusal(t, policy, test.request, test.allowed); (got != "") != test.refused {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got, want := refusal(t, policy, request{object: vm(wantAudiences)}, "vault\nx"), "imds.kubevirt.io/token-audiences: allowed here are only: vault, x: ask who runs the cluster for others"; got != want {
		t.Errorf("the message is %q, want %q", got, want)
	}
}
