// Package conditions tests the match conditions of the committed
// MutatingWebhookConfiguration with the API server's own code: which requests
// reach which webhook, that no object can make a condition fail, and what the
// conditions cost the API server.
package conditions

import (
	"os"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/object"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// oldest is the oldest Kubernetes that is supported: what a condition says has to
// be known there.
var oldest = version.MajorMinor(1, 30)

// The webhooks, as the configuration names them.
const (
	pods            = "pod.imds.kubevirt.io"
	refuseVMs       = "virtualmachine.imds.kubevirt.io"
	repairVMs       = "repair.virtualmachine.imds.kubevirt.io"
	refuseInstances = "virtualmachineinstance.imds.kubevirt.io"
	repairInstances = "repair.virtualmachineinstance.imds.kubevirt.io"
)

var (
	podKind      = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	vmKind       = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
	instanceKind = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
	resources    = map[schema.GroupVersionKind]string{podKind: "pods", vmKind: "virtualmachines", instanceKind: "virtualmachineinstances"}
)

// configuration reads what is committed.
func configuration(t testing.TB) []admissionregistrationv1.MutatingWebhook {
	t.Helper()
	content, err := os.ReadFile("../../../kustomize/base/mutatingwebhookconfiguration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var configuration admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(content, &configuration); err != nil {
		t.Fatal(err)
	}
	for i := range configuration.Webhooks {
		if hook := &configuration.Webhooks[i]; hook.ObjectSelector == nil {
			hook.ObjectSelector = &metav1.LabelSelector{} // the API server's default
		}
	}
	return configuration.Webhooks
}

// apiServer evaluates conditions as the API server does.
type apiServer struct {
	webhooks []admissionregistrationv1.MutatingWebhook
	compiler cel.ConditionCompiler
	matchers []matchconditions.Matcher
	// conditions are those of the webhooks, each alone, for its cost.
	conditions [][]cel.ConditionEvaluator
	// policies are those of the component, as it comes.
	policies []validating.Validator
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	s := &apiServer{
		webhooks: configuration(t),
		compiler: cel.NewConditionCompiler(environment.MustBaseEnvSet(oldest)),
	}
	for i := range s.webhooks {
		accessor := webhook.NewMutatingWebhookAccessor("uid", "imds-webhook", &s.webhooks[i])
		s.matchers = append(s.matchers, accessor.GetCompiledMatcher(s.compiler))
		var alone []cel.ConditionEvaluator
		for _, condition := range s.webhooks[i].MatchConditions {
			alone = append(alone, s.compiler.CompileCondition(
				[]cel.ExpressionAccessor{(*matchconditions.MatchCondition)(&condition)},
				cel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.NewExpressions))
		}
		s.conditions = append(s.conditions, alone)
	}
	for _, name := range []string{"imds-opt-in", "imds-audiences"} {
		s.policies = append(s.policies, validator(t, name, ""))
	}
	return s
}

// request is a write to the API server: without an old object a CREATE.
type request struct{ object, old runtime.Object }

func (r request) attributes() *admission.VersionedAttributes {
	kind := r.object.GetObjectKind().GroupVersionKind()
	operation, options := admission.Create, runtime.Object(&metav1.CreateOptions{})
	if r.old != nil {
		operation, options = admission.Update, &metav1.UpdateOptions{}
	}
	attributes := admission.NewAttributesRecord(r.object, r.old, kind, "tenant", "web",
		kind.GroupVersion().WithResource(resources[kind]), "", operation, options, false, &user.DefaultInfo{Name: "someone"})
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind}
	versioned.VersionedObject.Set(r.object)
	if r.old != nil {
		versioned.VersionedOldObject.Set(r.old)
	}
	return versioned
}

// selects reports whether rules and object selector of the webhook let a request
// come as far as the conditions.
func selects(t testing.TB, hook *admissionregistrationv1.MutatingWebhook, attributes admission.Attributes) bool {
	t.Helper()
	selected, err := new(object.Matcher).MatchObjectSelector(webhook.NewMutatingWebhookAccessor("uid", "imds-webhook", hook), attributes)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range hook.Rules {
		if matcher := (rules.Matcher{Rule: rule, Attr: attributes}); selected && matcher.Matches() {
			return true
		}
	}
	return false
}

// sent returns the webhooks that the API server calls. A condition that fails is a
// fault of the test's subject, whatever the policy.
func (s *apiServer) sent(t testing.TB, r request) []string {
	t.Helper()
	var names []string
	for i := range s.webhooks {
		attributes := r.attributes()
		if !selects(t, &s.webhooks[i], attributes) {
			continue
		}
		for j, condition := range s.conditions[i] {
			if _, err := evaluate(t, condition, r); err != nil {
				t.Errorf("%s: condition %s fails: %v", s.webhooks[i].Name, s.webhooks[i].MatchConditions[j].Name, err)
			}
		}
		if result := s.matchers[i].Match(t.Context(), attributes, nil, nil); result.Error != nil {
			t.Errorf("%s: the object is refused: %v", s.webhooks[i].Name, result.Error)
		} else if result.Matches {
			names = append(names, s.webhooks[i].Name)
		}
	}
	return names
}

// evaluate returns the cost of a condition, in the units of which a webhook's
// conditions have 2,500,000 together.
func evaluate(t testing.TB, condition cel.ConditionEvaluator, r request) (cost int64, err error) {
	t.Helper()
	attributes := r.attributes()
	results, left, err := condition.ForInput(t.Context(), attributes,
		cel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(attributes.GetResource()), metav1.GroupVersionKind(attributes.VersionedKind)),
		cel.OptionalVariableBindings{}, nil, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		return celconfig.RuntimeCELCostBudgetMatchConditions, err
	}
	return celconfig.RuntimeCELCostBudgetMatchConditions - left, results[0].Error
}

func custom(kind schema.GroupVersionKind, content string) *unstructured.Unstructured {
	resource := &unstructured.Unstructured{Object: parse(content)}
	resource.SetGroupVersionKind(kind)
	resource.SetName("web")
	resource.SetNamespace("tenant")
	return resource
}

func vm(content string) *unstructured.Unstructured       { return custom(vmKind, content) }
func instance(content string) *unstructured.Unstructured { return custom(instanceKind, content) }

func parse(content string) map[string]any {
	var parsed map[string]any
	text, err := yaml.YAMLToJSON([]byte(content))
	if err == nil {
		err = utiljson.Unmarshal(text, &parsed) // whole numbers are int64, as in the API server
	}
	if err != nil {
		panic(err)
	}
	return parsed
}

// merged returns a copy of an object with a JSON merge patch applied.
func merged(resource *unstructured.Unstructured, patch string) *unstructured.Unstructured {
	resource = resource.DeepCopy()
	merge(resource.Object, parse(patch))
	return resource
}

func merge(target, patch map[string]any) {
	for name, value := range patch {
		inner, isMap := value.(map[string]any)
		current, wasMap := target[name].(map[string]any)
		switch {
		case value == nil:
			delete(target, name)
		case isMap && wasMap:
			merge(current, inner)
		default:
			target[name] = value
		}
	}
}
