package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/selfsigned"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// others are somebody else's, beside an overlay, with our names in every place where
// they may be by chance.
const others = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: others
  namespace: others
  annotations: {imds.kubevirt.io/server-image: kubevirt-imds-server, image: redis}
spec:
  selector: {matchLabels: {app: others}}
  template:
    metadata:
      labels: {app: others}
      annotations: {image: redis, server-image: kubevirt-imds-server, service: imds-webhook}
    spec:
      initContainers:
      - name: wait
        image: busybox
        args: [redis, kubevirt-imds-server, imds-webhook]
        env: &env
        - {name: REDIS_HOST, value: redis}
        - {name: SERVER_IMAGE, value: kubevirt-imds-server}
        - {name: SERVICE, value: imds-webhook}
      containers:
      - name: redis
        image: redis
        env: *env
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: others, namespace: others}
spec: {secretName: others, dnsNames: [others.kubevirt-imds.svc], issuerRef: {name: imds-ca}}
`

// TestOthersAreLeftAlone: what kustomize makes of other people's resources is the same
// without us.
func TestOthersAreLeftAlone(t *testing.T) {
	const settings = `images:
- {name: redis, newTag: "7"}
- {name: kubevirt-imds-server, newTag: v1.2.3}
namePrefix: acme-
nameSuffix: -a
transformers:
- ../kubevirt-imds/kustomize/namespace
`
	theirs := func(rendered []byte) string {
		var found []string
		for document := range strings.SplitSeq(string(rendered), "\n---\n") {
			if strings.Contains(document, "\n  name: acme-others-a\n") {
				found = append(found, strings.TrimSpace(document))
			}
		}
		return strings.Join(found, "\n---\n")
	}
	files := map[string]string{"others.yaml": others}
	// The Service that the transformer asks for, and nothing else of ours.
	files["service.yaml"] = "apiVersion: v1\nkind: Service\nmetadata: {name: imds-webhook, namespace: kubevirt-imds}\n"
	want := theirs(renderMine(t, "resources: [others.yaml, service.yaml]\n"+strings.Split(settings, "transformers")[0], files))
	if strings.Count(want, "\nkind: ") != 2 || !strings.Contains(want, "image: redis:7") {
		t.Fatalf("they are not rendered:\n%s", want)
	}
	for _, overlay := range render.Overlays {
		got := theirs(renderMine(t, "resources: [others.yaml, ../kubevirt-imds/"+overlay+"]\n"+settings, files))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-without it +with it):\n%s", overlay, diff)
		}
	}
}

// TestOneImagesEntryIsForThePullAndForTheSidecars: what the nodes try to pull is what
// the VMs get.
func TestOneImagesEntryIsForThePullAndForTheSidecars(t *testing.T) {
	server, webhook := overlayImages(t)
	digest := "sha256:" + strings.Repeat("24a0c4b4", 8)
	for entry, want := range map[string]string{
		"newTag: v1.2.3":            server.NewName + ":v1.2.3",
		"newName: localhost:5000/s": "localhost:5000/s:" + server.NewTag,
		"digest: " + digest:         server.NewName + "@" + digest,
		"newName: registry.example.com/s, newTag: v1, digest: " + digest: "registry.example.com/s:v1@" + digest,
	} {
		r := decode(t, renderMine(t, "resources: [../kubevirt-imds/overlays/kind]\nimages: [{name: "+server.NewName+", "+entry+"}]\n", nil))
		template := r.deployment.Spec.Template
		if pulled, told := template.Spec.InitContainers[0].Image, template.Annotations["imds.kubevirt.io/server-image"]; pulled != want || told != want {
			t.Errorf("%s: %s is pulled, the sidecars get %s, want %s", entry, pulled, told, want)
		}
		if own := template.Spec.Containers[0].Image; own != webhook.NewName+":"+webhook.NewTag {
			t.Errorf("%s: the webhook's image is %s", entry, own)
		}
	}
}

// TestCertificateForAnotherNameIsNotReady: a kustomization that moves the Service and
// not what the certificate is for says why it cannot work.
func TestCertificateForAnotherNameIsNotReady(t *testing.T) {
	for settings, host := range map[string]string{
		"namespace: platform-imds": "imds-webhook.platform-imds.svc",
		"namePrefix: acme-":        "acme-imds-webhook.kubevirt-imds.svc",
		"nameSuffix: -a":           "imds-webhook-a.kubevirt-imds.svc",
	} {
		t.Run(settings, func(t *testing.T) {
			r := decode(t, renderMine(t, "resources: [../kubevirt-imds/overlays/cert-manager]\n"+settings+"\n", nil))
			for _, webhook := range r.configuration.Webhooks {
				if service := webhook.ClientConfig.Service; service.Name+"."+service.Namespace+".svc" != host {
					t.Fatalf("%s calls %s.%s.svc", webhook.Name, service.Name, service.Namespace)
				}
			}
			names := certificateNames(r, r.service.Name)
			if status, body := readiness(t, r, names); status != http.StatusServiceUnavailable ||
				!strings.Contains(body, names[0]) || !strings.Contains(body, "subject alternative name "+host) {
				t.Errorf("/readyz: %d %s", status, body)
			}
		})
	}
}

// certificateNames are what cert-manager is asked to issue a Certificate for.
func certificateNames(r rendered, certificate string) []string {
	var names []string
	for _, name := range r.certManager["Certificate/"+certificate]["spec"].(map[string]any)["dnsNames"].([]any) {
		names = append(names, name.(string))
	}
	return names
}

// readiness runs the webhook of an installation with a certificate for names, and asks
// /readyz.
func readiness(t *testing.T, r rendered, names []string) (status int, body string) {
	t.Helper()
	bundle, err := selfsigned.Issue(time.Hour, names...)
	if err != nil {
		t.Fatal(err)
	}
	listening := start(t, prepareWebhook(t, r, bundle), `msg=listening webhook=(\S+) health=(\S+)`)
	response, err := http.Get("http://" + listening[2] + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}
