package krmfunction

import (
	"fmt"
	"regexp"

	"sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
)

// dnsLabel is what the API server takes for the name of a namespace (RFC 1123).
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// readOptions reads the functionConfig: none, or a ConfigMap with the keys
// namespace and failure-policy, such as the package's setters.yaml. Its other
// keys are for other functions.
func readOptions(config *yaml.RNode) (manifest.Options, error) {
	options := manifest.Defaults
	if config.IsNilOrEmpty() {
		return options, nil
	}
	if config.GetKind() != "ConfigMap" {
		return options, fmt.Errorf("functionConfig of kind %q is not supported: use a ConfigMap with the keys namespace and failure-policy", config.GetKind())
	}
	data := config.GetDataMap()
	if namespace, found := data["namespace"]; found {
		if !dnsLabel.MatchString(namespace) {
			return options, fmt.Errorf("functionConfig: namespace %q is not a DNS label: use 1 to 63 lower-case letters, digits and hyphens", namespace)
		}
		options.Namespace = namespace
	}
	if policy, found := data["failure-policy"]; found {
		if policy != "Fail" && policy != "Ignore" {
			return options, fmt.Errorf("functionConfig: failure-policy %q is not known: use Fail or Ignore", policy)
		}
		options.FailurePolicy = policy
	}
	return options, nil
}
