package manifest

import (
	"fmt"
	"slices"
	"text/template"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// functions name an annotation by what is behind its prefix.
var functions = template.FuncMap{
	"annotation": func(name string) (string, error) { return known(annotation.Prefix + name) },
	"verdict":    func(name string) (string, error) { return known(annotation.VerdictPrefix + name) },
}

func known(name string) (string, error) {
	if !slices.Contains(annotation.All(), name) {
		return "", fmt.Errorf("no annotation %s", name)
	}
	return name, nil
}

// values is what the templates may name.
func values(options Options) map[string]any {
	return map[string]any{
		"Namespace":     options.Namespace,
		"FailurePolicy": options.FailurePolicy,

		"Webhook":                          contract.Webhook,
		"ServicePort":                      contract.ServicePort,
		"MutatePodPath":                    contract.MutatePodPath,
		"MutateVirtualMachinePath":         contract.MutateVirtualMachinePath,
		"MutateVirtualMachineInstancePath": contract.MutateVirtualMachineInstancePath,
		"RepairVirtualMachinePath":         contract.RepairVirtualMachinePath,
		"RepairVirtualMachineInstancePath": contract.RepairVirtualMachineInstancePath,

		"AnnotationDomain":   annotation.Domain,
		"AnnotationPrefix":   annotation.Prefix,
		"UserAnnotations":    annotation.ByUser(),
		"VerdictAnnotations": annotation.Verdict(),
		// What a user may set nowhere. A name of VerdictPrefix is let pass on a VM.
		"ReservedAnnotations": append(annotation.OnPod(), annotation.RedirectPort),

		"Init":   contract.Init,
		"Server": contract.Server,

		"NodeVolume":       contract.NodeVolume,
		"NodeSocketFolder": contract.NodeSocketFolder,
		"NodeSocket":       contract.NodeSocket,

		"TokenVolume":  contract.TokenVolume,
		"TokenFolder":  contract.TokenFolder,
		"TokenFile":    contract.TokenFile,
		"TokenSeconds": contract.TokenSeconds,
		"ServerPort":   contract.ServerPort,
	}
}
