package conditions

import (
	"testing"

	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
)

// TestConditionsCompile does what the API server does when the configuration is
// applied, for the oldest Kubernetes that is supported.
func TestConditionsCompile(t *testing.T) {
	compiler := cel.NewCompiler(environment.MustBaseEnvSet(oldest))
	for _, webhook := range configuration(t) {
		for _, condition := range webhook.MatchConditions {
			result := compiler.CompileCELExpression((*matchconditions.MatchCondition)(&condition),
				cel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.NewExpressions)
			if result.Error != nil {
				t.Errorf("%s: condition %s: %v", webhook.Name, condition.Name, result.Error)
			}
		}
	}
}
