package main

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/apiservertest"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// startSelfSigned runs imds-webhook --self-signed as a pod of namespace infra.
func startSelfSigned(t *testing.T, api *apiservertest.Server, timing timing) *webhook {
	t.Helper()
	w := &webhook{
		t: t, patches: declaredPatches, log: newLogBuffer(),
		pod: podEnvironment{getenv: api.Getenv, serviceAccountFolder: api.Folder},
	}
	w.start(timing, "--self-signed")
	return w
}

func TestAPIServerTrustsTheSelfSignedWebhook(t *testing.T) {
	api := apiservertest.New(t)
	w := startSelfSigned(t, api, immediately)
	w.log.wait(t, "CA published")
	if status, body := w.ready(); status != http.StatusOK {
		t.Errorf("/readyz: %d %s", status, body)
	}
	for _, webhook := range api.Configuration.Webhooks {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(webhook.ClientConfig.CABundle)
		for _, name := range []string{"imds-webhook.infra.svc", "imds-webhook.infra.svc.cluster.local"} {
			connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: roots, ServerName: name})
			if err != nil {
				t.Fatalf("with the caBundle of %s: %v", webhook.Name, err)
			}
			connection.Close()
		}
	}
}

func TestSelfSignedWebhookIsReadyOnceItsCAIsPublished(t *testing.T) {
	api := apiservertest.New(t)
	api.Configuration = nil // applied after the Deployment
	failed, again := make(chan struct{}), make(chan time.Time)
	timing := immediately
	timing.retry = func(int) <-chan time.Time { failed <- struct{}{}; return again }
	w := startSelfSigned(t, api, timing)

	<-failed
	if status, body := w.ready(); status != http.StatusServiceUnavailable ||
		!strings.Contains(body, "MutatingWebhookConfiguration imds-webhook") || !strings.Contains(body, "not found") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if status, body := w.health("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d %s", status, body)
	}
	api.Update(func(api *apiservertest.Server) { api.Configuration = apiservertest.NewConfiguration() })
	again <- time.Time{}
	w.log.wait(t, "CA published")
	if status, body := w.ready(); status != http.StatusOK {
		t.Errorf("/readyz: %d %s", status, body)
	}
}

func TestSelfSignedWebhookEndsWithoutItsCAPublished(t *testing.T) {
	api := apiservertest.New(t)
	api.Token = "another"
	failed := make(chan struct{})
	timing := immediately
	timing.retry = func(int) <-chan time.Time { close(failed); return nil }
	w := startSelfSigned(t, api, timing)
	<-failed
	w.terminate()
	if status := <-w.exit; status != 0 {
		t.Errorf("status %d; log:\n%s", status, w.log)
	}
}

func TestPausesBetweenAttemptsGrowToTenSeconds(t *testing.T) {
	for attempt, want := range map[int]time.Duration{0: 250 * time.Millisecond, 1: 500 * time.Millisecond, 5: 8 * time.Second, 6: 10 * time.Second, 1000: 10 * time.Second} {
		if got := retryPause(attempt); got != want {
			t.Errorf("after attempt %d: %s, want %s", attempt, got, want)
		}
	}
}

func TestSelfSignedWebhookThatCannotServeEnds(t *testing.T) {
	api := apiservertest.New(t)
	api.Configuration = nil // the CA is never published
	pod := podEnvironment{getenv: api.Getenv, serviceAccountFolder: api.Folder}
	timing := immediately
	timing.retry = func(int) <-chan time.Time { return nil }
	log := slog.New(slog.DiscardHandler)
	opts := options{selfSigned: true, patches: declaredPatches, serverImage: serverImage, listen: "127.0.0.1:0", healthListen: "127.0.0.1:0"}
	certificates, publication, err := openCertificates(opts, pod, timing, log)
	if err != nil {
		t.Fatal(err)
	}
	patches, err := patchset.Open(opts.patches, opts.serverImage)
	if err != nil {
		t.Fatal(err)
	}
	service, err := listen(opts, certificates, publication, patches, timing, log)
	if err != nil {
		t.Fatal(err)
	}
	service.webhookListener.Close()
	if err := service.run(t.Context()); err == nil {
		t.Error("no error from a closed listener")
	}
}
