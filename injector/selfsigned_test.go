package main

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

// startSelfSigned runs imds-webhook --self-signed as a pod.
func startSelfSigned(t *testing.T, api *testAPI, timing timing) *webhook {
	t.Helper()
	w := &webhook{
		t: t, patches: declaredPatches, log: newLogBuffer(),
		pod: podEnvironment{getenv: api.getenv, serviceAccountFolder: api.folder},
	}
	w.start(timing, "--self-signed")
	return w
}

func TestAPIServerTrustsTheSelfSignedWebhook(t *testing.T) {
	api := newTestAPI(t)
	w := startSelfSigned(t, api, immediately)
	w.log.wait(t, "CA published")
	if status, body := w.ready(); status != http.StatusOK {
		t.Errorf("/readyz: %d %s", status, body)
	}
	for _, webhook := range api.configuration.Webhooks {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(webhook.ClientConfig.CABundle)
		for _, name := range []string{serviceName, serviceName + ".cluster.local"} {
			connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: roots, ServerName: name})
			if err != nil {
				t.Fatalf("with the caBundle of %s: %v", webhook.Name, err)
			}
			connection.Close()
		}
	}
}

func TestSelfSignedWebhookIsReadyWhileItsCAIsPublished(t *testing.T) {
	api := newTestAPI(t)
	api.configuration = nil // applied after the Deployment
	paused, again := make(chan int), make(chan time.Time)
	timing := immediately
	timing.publish = func(failures int) <-chan time.Time { paused <- failures; return again }
	w := startSelfSigned(t, api, timing)
	wantUnready := func() {
		t.Helper()
		if failures := <-paused; failures != 1 {
			t.Errorf("%d failures, want 1", failures)
		}
		if status, body := w.ready(); status != http.StatusServiceUnavailable ||
			!strings.Contains(body, "MutatingWebhookConfiguration imds-webhook") || !strings.Contains(body, "not found") {
			t.Errorf("/readyz: %d %s", status, body)
		}
	}
	wantReady := func() {
		t.Helper()
		if failures := <-paused; failures != 0 {
			t.Errorf("%d failures, want 0", failures)
		}
		if status, body := w.ready(); status != http.StatusOK {
			t.Errorf("/readyz: %d %s", status, body)
		}
	}

	wantUnready()
	if status, body := w.health("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d %s", status, body)
	}
	api.update(func(api *testAPI) { api.configuration = newConfiguration() })
	again <- time.Time{}
	wantReady()
	// Deleted, and applied again.
	api.update(func(api *testAPI) { api.configuration = nil })
	again <- time.Time{}
	wantUnready()
	api.update(func(api *testAPI) { api.configuration = newConfiguration() })
	again <- time.Time{}
	wantReady()
}

func TestSelfSignedWebhookEndsWithoutItsCAPublished(t *testing.T) {
	api := newTestAPI(t)
	api.token = "another"
	failed := make(chan struct{})
	timing := immediately
	timing.publish = func(int) <-chan time.Time { close(failed); return nil }
	w := startSelfSigned(t, api, timing)
	<-failed
	w.terminate()
	if status := <-w.exit; status != 0 {
		t.Errorf("status %d; log:\n%s", status, w.log)
	}
}

func TestPausesBetweenAttemptsGrowToFiveSeconds(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: 5 * time.Second, 1: 250 * time.Millisecond, 2: 500 * time.Millisecond, 5: 4 * time.Second, 6: 5 * time.Second, 1000: 5 * time.Second} {
		if got := publishPause(failures); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
}

func TestSelfSignedWebhookThatCannotServeEnds(t *testing.T) {
	api := newTestAPI(t)
	api.configuration = nil // the CA is never published
	pod := podEnvironment{getenv: api.getenv, serviceAccountFolder: api.folder}
	timing := immediately
	timing.publish = func(int) <-chan time.Time { return nil }
	log := slog.New(slog.DiscardHandler)
	opts := options{selfSigned: true, service: serviceName, patches: declaredPatches, serverImage: serverImage, listen: "127.0.0.1:0", healthListen: "127.0.0.1:0"}
	service, err := listen(opts, pod, timing, log, log)
	if err != nil {
		t.Fatal(err)
	}
	service.webhookListener.Close()
	if err := service.run(t.Context()); err == nil {
		t.Error("no error from a closed listener")
	}
}
