package checks

import (
	"encoding/json"
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// caBundleChecks are about what others do to the configuration that the webhook keeps its CA in.
func caBundleChecks(in *installation) []suite.Check {
	if in.rights == nil {
		return nil // it keeps none
	}
	return []suite.Check{
		{Name: "ca/replaced", Proves: "its configuration is replaced without the CA, and it admits again within seconds", Run: in.replacesConfiguration},
		{Name: "ca/deleted", Proves: "its configuration is deleted: it is not ready; applied again, it admits within seconds", Run: in.deletesConfiguration},
	}
}

func (in *installation) replacesConfiguration(t *suite.T) {
	ctx := t.Context()
	config, err := kube.Get[admissionregistrationv1.MutatingWebhookConfiguration](ctx, in.api, configurations+"/"+webhook)
	t.Check(err)
	config.ResourceVersion = ""
	config.APIVersion, config.Kind = "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"
	for i := range config.Webhooks {
		config.Webhooks[i].ClientConfig.CABundle = nil
	}
	content, err := json.Marshal(config)
	t.Check(err)
	_, err = in.kubectlWith(ctx, string(content), "replace", "-f", "-")
	t.Check(err)
	in.admitsAgain(t)
}

func (in *installation) deletesConfiguration(t *suite.T) {
	ctx := t.Context()
	_, err := in.kubectl(ctx, "delete", "mutatingwebhookconfiguration", webhook)
	t.Check(err)
	_, ready := kube.Await(ctx, in.api, deployments, webhook, patience, func(d *appsv1.Deployment) string {
		if d.Status.AvailableReplicas == 0 {
			return ""
		}
		return fmt.Sprintf("%d replicas are available", d.Status.AvailableReplicas)
	})
	// First of all: the other checks need it.
	_, err = in.kubectl(ctx, "apply", "-k", in.path())
	t.Check(err)
	t.Check(ready)
	in.admitsAgain(t)
	t.Check(in.awaitAdmission(ctx))
}

// admitsAgain waits until a pod that asks is injected.
func (in *installation) admitsAgain(t *suite.T) {
	begin := time.Now()
	t.Check(in.awaitInjection(t.Context()))
	t.Logf("admitting after %.1f s", time.Since(begin).Seconds())
}
