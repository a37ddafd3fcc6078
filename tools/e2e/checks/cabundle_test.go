package checks

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testCABundle is about what others do to the configuration that the webhook keeps its CA in.
func (in *installation) testCABundle(t *testing.T) {
	if in.rights == nil {
		return // it keeps none
	}
	in.check(t, "ca/replaced", "its configuration is replaced without the CA, and it admits again within seconds", in.replacesConfiguration)
	in.check(t, "ca/deleted", "its configuration is deleted: it is not ready; applied again, it admits within seconds", in.deletesConfiguration)
}

func (in *installation) replacesConfiguration(t *testing.T) {
	ctx := t.Context()
	config, err := kube.Get[admissionregistrationv1.MutatingWebhookConfiguration](ctx, in.api, configurations+"/"+webhook)
	check(t, err)
	config.ResourceVersion = ""
	config.APIVersion, config.Kind = "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"
	for i := range config.Webhooks {
		config.Webhooks[i].ClientConfig.CABundle = nil
	}
	content, err := json.Marshal(config)
	check(t, err)
	_, err = in.kubectlWith(ctx, string(content), "replace", "-f", "-")
	check(t, err)
	in.admitsAgain(t)
}

func (in *installation) deletesConfiguration(t *testing.T) {
	ctx := t.Context()
	_, err := in.kubectl(ctx, "delete", "mutatingwebhookconfiguration", webhook)
	check(t, err)
	_, ready := kube.Await(ctx, in.api, deployments, webhook, patience, func(d *appsv1.Deployment) string {
		if d.Status.AvailableReplicas == 0 {
			return ""
		}
		return fmt.Sprintf("%d replicas are available", d.Status.AvailableReplicas)
	})
	// First of all: the other checks need it.
	_, err = in.kubectl(ctx, "apply", "-k", in.path())
	check(t, err)
	check(t, ready)
	in.admitsAgain(t)
	check(t, in.awaitAdmission(ctx))
}

// admitsAgain waits until a pod that asks is injected.
func (in *installation) admitsAgain(t *testing.T) {
	begin := time.Now()
	check(t, in.awaitInjection(t.Context()))
	t.Logf("admitting after %.1f s", time.Since(begin).Seconds())
}
