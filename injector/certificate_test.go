package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// served returns the certificate of a new handshake.
func (w *webhook) served() *x509.Certificate {
	w.t.Helper()
	connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca})
	if err != nil {
		w.t.Fatal(err)
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

func certificateIn(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestRenewedCertificateIsServedAtTheNextHandshake(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	first := w.served()
	if !first.Equal(certificateIn(t, w.certFile)) {
		t.Fatal("the certificate in the file is not the one that is served")
	}
	w.renewCertificate(time.Hour)
	second := w.served()
	if second.Equal(first) || !second.Equal(certificateIn(t, w.certFile)) {
		t.Error("the renewed certificate is not served")
	}
	w.log.wait(t, "renewed certificate is in use")
}

// The kubelet shows the files of a Secret as links into a folder that it swaps.
func TestCertificateSwappedBySymlinkIsServed(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	first := w.served()
	for _, path := range []string{w.certFile, w.keyFile} {
		if err := os.Rename(path, path+".v1"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path+".v1", path); err != nil {
			t.Fatal(err)
		}
	}
	if !w.served().Equal(first) {
		t.Fatal("another certificate behind a link to the same file")
	}
	w.renewCertificate(time.Hour)
	if w.served().Equal(first) {
		t.Error("the renewed certificate is not served")
	}
}

func TestBadRenewalKeepsTheOldCertificateAndIsReportedOnce(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for name, test := range map[string]struct {
		spoil func()
		says  string
	}{
		"key of another certificate": {func() { replaceFile(t, w.keyFile, issue(t, time.Hour, serviceName).Key) }, "belong together"},
		"no PEM":                     {func() { replaceFile(t, w.certFile, []byte("renewal under way")) }, "must be PEM"},
		"gone": {func() {
			if err := os.Remove(w.certFile); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		"for another name": {func() { w.replacePair(issue(t, time.Hour, "imds-webhook.infra.svc")) }, "imds-webhook.infra.svc"},
		"expired":          {func() { w.replacePair(issue(t, -time.Minute, serviceName)) }, "renew it"},
		"root before leaf": {func() {
			pair := issue(t, time.Hour, serviceName)
			pair.Certificate = append(pair.CA, pair.Certificate...)
			w.replacePair(pair)
		}, "put the serving certificate first"},
	} {
		t.Run(name, func(t *testing.T) {
			w.renewCertificate(time.Hour)
			first := w.served()
			before := w.log.count("renewed certificate is not used")
			test.spoil()
			for range 3 {
				if !w.served().Equal(first) {
					t.Error("the last good certificate is not served any more")
				}
			}
			if reported := w.log.count("renewed certificate is not used") - before; reported != 1 {
				t.Errorf("reported %d times", reported)
			}
			if status, body := w.ready(); status != http.StatusOK || !strings.Contains(body, "the last good certificate stays in use") || !strings.Contains(body, test.says) {
				t.Errorf("/readyz: %d %s", status, body)
			}

			w.renewCertificate(time.Hour)
			if w.served().Equal(first) {
				t.Error("a good renewal after a bad one is not served")
			}
			if status, body := w.ready(); status != http.StatusOK || body != "OK\n" {
				t.Errorf("/readyz: %d %s", status, body)
			}
		})
	}
}

func TestCertificateThatTheAPIServerRefusesIsNotReadyUntilRenewed(t *testing.T) {
	for name, test := range map[string]struct {
		lifetime time.Duration
		host     string
		says     []string
	}{
		"expired":          {-time.Minute, serviceName, []string{"is valid from", "renew it"}},
		"for another name": {time.Hour, "imds-webhook.infra.svc", []string{"imds-webhook.infra.svc", "subject alternative name " + serviceName}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWebhook(t, declaredPatches)
			w.replacePair(issue(t, test.lifetime, test.host))
			w.start(immediately, "--tls-cert", w.certFile, "--tls-key", w.keyFile)
			for range 2 {
				status, body := w.ready()
				if status != http.StatusServiceUnavailable {
					t.Errorf("/readyz: %d", status)
				}
				for _, part := range append(test.says, w.certFile) {
					if !strings.Contains(body, part) || !strings.Contains(w.log.wait(t, "not ready"), part) {
						t.Errorf("/readyz %q and the log %q do not both say %s", body, w.log.wait(t, "not ready"), part)
					}
				}
			}
			if lines := w.log.count("not ready"); lines != 1 {
				t.Errorf("%d lines say so, want 1:\n%s", lines, w.log)
			}
			w.renewCertificate(time.Hour)
			if status, body := w.ready(); status != http.StatusOK || body != "OK\n" {
				t.Errorf("/readyz after the renewal: %d %s", status, body)
			}
		})
	}
}

// TestCAFileBesideTheCertificateIsWhatTheAPIServerTrusts: a Secret of cert-manager
// has one.
func TestCAFileBesideTheCertificateIsWhatTheAPIServerTrusts(t *testing.T) {
	w := newWebhook(t, declaredPatches)
	pair := issue(t, time.Hour, serviceName)
	w.replacePair(pair)
	caFile := filepath.Join(filepath.Dir(w.certFile), "ca.crt")
	replaceFile(t, caFile, issue(t, time.Hour, serviceName).CA)
	w.start(immediately, "--tls-cert", w.certFile, "--tls-key", w.keyFile)
	if status, body := w.ready(); status != http.StatusServiceUnavailable || !strings.Contains(body, "ca.crt must hold the CA") {
		t.Errorf("/readyz with another CA: %d %s", status, body)
	}
	replaceFile(t, caFile, pair.CA)
	if status, body := w.ready(); status != http.StatusOK || body != "OK\n" {
		t.Errorf("/readyz with its own: %d %s", status, body)
	}
}

func TestTLSBefore13IsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	_, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca, MaxVersion: tls.VersionTLS12})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("got %v", err)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	response, err := http.Post(strings.Replace(w.url, "https", "http", 1)+"/mutate-pod", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("got %s", response.Status)
	}
}

func TestHTTP1AndHTTP2(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		client := w.client()
		transport := client.Transport.(*http.Transport)
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
		transport.Protocols.SetHTTP2(protocol == "HTTP/2.0")
		body := strings.NewReader(string(reviewOf(t, podRequest(fixture(t, "masquerade")))))
		response, err := client.Post(w.url+"/mutate-pod", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.Proto != protocol || response.StatusCode != http.StatusOK {
			t.Errorf("asked for %s, got %s %s", protocol, response.Proto, response.Status)
		}
	}
}

// What expires in the last tenth of its life is told once, and by /readyz.
func TestCertificateThatExpiresSoonIsTold(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	log := newLogBuffer()
	source, err := certificateFiles(w.certFile, w.keyFile, serviceName, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if warning := source.look(time.Now()).soon; warning != nil {
		t.Errorf("too early: %v", warning)
	}
	soon := source.current.parsed[0].NotAfter.Add(-time.Minute)
	for range 2 {
		if warning := source.look(soon).soon; warning == nil || !strings.Contains(warning.Error(), "renew it") {
			t.Errorf("a minute before: %v", warning)
		}
	}
	if lines := strings.Count(log.String(), "the certificate expires at"); lines != 1 {
		t.Errorf("told %d times:\n%s", lines, log.String())
	}
}
