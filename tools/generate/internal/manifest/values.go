package manifest

import "github.com/example/kubevirt-imds/tools/generate/internal/contract"

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

		"AnnotationDomain":       contract.AnnotationDomain,
		"AnnotationPrefix":       contract.AnnotationPrefix,
		"UserAnnotations":        contract.UserAnnotations,
		"VerdictWiring":          contract.VerdictWiring,
		"VerdictBridgeName":      contract.VerdictBridgeName,
		"Enabled":                contract.Enabled,
		"VMName":                 contract.VMName,
		"VMIUID":                 contract.VMIUID,
		"RedirectPort":           contract.RedirectPort,
		"BridgeName":             contract.BridgeName,
		"TokenAudiences":         contract.TokenAudiences,
		"TokenExpirationSeconds": contract.TokenExpirationSeconds,
		"RequireHeader":          contract.RequireHeader,
		"HopLimit":               contract.HopLimit,

		"Init":         contract.Init,
		"Server":       contract.Server,
		"TokenVolume":  contract.TokenVolume,
		"TokenFolder":  contract.TokenFolder,
		"TokenFile":    contract.TokenFile,
		"TokenSeconds": contract.TokenSeconds,
		"ServerPort":   contract.ServerPort,
	}
}
