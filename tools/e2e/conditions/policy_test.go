package conditions

import (
	"os"
	"regexp"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
//
// The expression is that of its first variable; where it is empty, that of the file.
func validator(t testing.TB, name, expression string) validating.Validator {
	t.Helper()
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	readPolicy(t, "validatingadmissionpolicy-"+name+".yaml", &policy)
	spec := policy.Spec
	if expression != "" {
		spec.Variables[0].Expression = expression
	}
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest))
	if err != nil {
		t.Fatal(err)
	}
	variables := cel.OptionalVariableDeclarations{HasAuthorizer: true}
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
		compiler.CompileCondition(messages, cel.OptionalVariableDeclarations{}, environment.NewExpressions),
		spec.FailurePolicy, nil)
}

// refusal is the message of a policy's refusal. An evaluation that fails is a fault of
// the test's subject.
func refusal(t testing.TB, policy validating.Validator, r request, namespace *corev1.Namespace) string {
	t.Helper()
	attributes := r.attributes()
	result := policy.Validate(t.Context(), attributes.GetResource(), attributes, nil, namespace, celconfig.RuntimeCELCostBudget, nil)
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

// onPage are the values that the page's recipe gives to the first variables, in its order.
func onPage(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../../../kustomize/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, found := range regexp.MustCompile(`path: /spec/variables/0/expression, value: '([^\n]*)'}`).FindAllSubmatch(page, -1) {
		values = append(values, string(found[1]))
	}
	if len(values) != 2 {
		t.Fatalf("%q on the page, want one for each policy", values)
	}
	return values
}

func labelled(name, value string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{name: value}}}
}

func TestPolicyOfNamespaces(t *testing.T) {
	policy := validator(t, "imds-opt-in", "")
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
		for _, namespace := range []*corev1.Namespace{{}, labelled("imds.kubevirt.io/allowed", "false"), labelled("example.com/tier", "true")} {
			if got := refusal(t, policy, test.request, namespace); (got != "") != test.refused {
				t.Errorf("%s, namespace with %v: %q", name, namespace.Labels, got)
			}
		}
		if got := refusal(t, policy, test.request, labelled("imds.kubevirt.io/allowed", "true")); got != "" {
			t.Errorf("%s, where it is allowed: %q", name, got)
		}
	}
	policy = validator(t, "imds-opt-in", onPage(t)[1])
	if got := refusal(t, policy, request{object: vm(asking)}, labelled("platform.example.com/imds", "true")); got != "" {
		t.Errorf("with a label of the platform's: %q", got)
	}
	want := `imds.kubevirt.io/enabled: "true" is not allowed in this namespace, whose label platform.example.com/imds is not "true": ask who runs the cluster`
	if got := refusal(t, policy, request{object: vm(asking)}, labelled("imds.kubevirt.io/allowed", "true")); got != want {
		t.Errorf("the message is %q, want %q", got, want)
	}
}

func TestPolicyOfAudiences(t *testing.T) {
	both := onPage(t)[0]
	for name, test := range map[string]struct {
		request
		allowed string
		refused bool
	}{
		"no audience":                  {request{object: vm(asking)}, "", false},
		"never asked":                  {request{object: vm(others)}, "", false},
		"audiences without the ask":    {request{object: vm(`metadata: {annotations: {imds.kubevirt.io/token-audiences: other}}`)}, both, false},
		"both allowed":                 {request{object: vm(wantAudiences)}, both, false},
		"one allowed":                  {request{object: vm(wantAudiences)}, `["vault"]`, true},
		"none allowed":                 {request{object: vm(wantAudiences)}, "", true},
		"a part of a name":             {request{object: vm(wantAudiences)}, `["vault2", "sts.amazonaws.com"]`, true},
		"in the template":              {request{object: merged(vm(askingByTemplate), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: other}}}}`)}, both, true},
		"no string":                    {request{object: merged(vm(asking), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: [other]}}}}`)}, both, false}, // the webhook's
		"an instance":                  {request{object: instance(wantAudiences)}, `["vault"]`, true},
		"asked for them before":        {request{object: merged(vm(wantAudiences), `spec: {runStrategy: Halted}`), old: vm(wantAudiences)}, "", false},
		"template is repaired":         {request{object: merged(vm(wantAudiences), `spec: {template: {metadata: {annotations: {imds.kubevirt.io/token-audiences: "vault, sts.amazonaws.com"}}}}`), old: vm(wantAudiences)}, "", false},
		"one more":                     {request{object: merged(vm(wantAudiences), `metadata: {annotations: {imds.kubevirt.io/token-audiences: "vault, other"}}`), old: vm(wantAudiences)}, both, true},
		"the audiences before the ask": {request{object: vm(wantAudiences), old: merged(vm(wantAudiences), `metadata: {annotations: {imds.kubevirt.io/enabled: null}}`)}, `["vault"]`, true},
	} {
		if got := refusal(t, validator(t, "imds-audiences", test.allowed), test.request, &corev1.Namespace{}); (got != "") != test.refused {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestMessagesOfAudiences: the API server shows a message of at most 5 kB, so a list of any
// length, and an audience of any length, leave one that says what to do.
func TestMessagesOfAudiences(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	listed := func(n int) string { return "[" + strings.Repeat(`"https://audience.example.com",`, n) + `"vault"]` }
	for name, test := range map[string]struct{ audiences, allowed, want string }{
		"none":          {"a", "", "a is not allowed here, only: none"},
		"some":          {"vault, b, a", `["vault", "x"]`, "b is not allowed here, only: vault, x"},
		"500":           {"a", listed(500), "a is not allowed here, only: 501 others"},
		"3000":          {"a", listed(3000), "a is not allowed here, only: 3001 others"}, // more is refused when it is applied
		"long audience": {long, `["vault"]`, "one of them is not allowed here, only: vault"},
	} {
		object := merged(vm(asking), `metadata: {annotations: {imds.kubevirt.io/token-audiences: "`+test.audiences+`"}}`)
		want := "imds.kubevirt.io/token-audiences: " + test.want + ": ask who runs the cluster for it"
		if got := refusal(t, validator(t, "imds-audiences", test.allowed), request{object: object}, &corev1.Namespace{}); got != want {
			t.Errorf("%s: the message is %.300q, want %q", name, got, want)
		}
	}
}
