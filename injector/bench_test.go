package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/patchset"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

// benchmarkBody is the admission request of a virt-launcher pod of 8 KB.
func benchmarkBody(b *testing.B) []byte {
	b.Helper()
	pod := tree(b, fixture(b, "hook-sidecars"))
	for i := 0; ; i++ {
		text, err := json.Marshal(pod)
		if err != nil {
			b.Fatal(err)
		}
		if len(text) >= 8<<10 {
			return reviewOf(b, podRequest(text))
		}
		annotationsOf(pod)[fmt.Sprintf("example.org/note-%d", i)] = "of the length that annotations usually have"
	}
}

// BenchmarkAdmission asks the webhook over TLS, on one connection that stays
// open, and in turn a server that decodes nothing and answers a constant. Both
// run in this process with the client; the ratio is between the two.
func BenchmarkAdmission(b *testing.B) {
	w := startWebhook(b, declaredPatches, immediately)
	body := benchmarkBody(b)
	status, answer := w.post("/mutate-pod", "application/json", body)
	if status != http.StatusOK || !bytes.Contains(answer, []byte(`"patch":`)) {
		b.Fatalf("status %d: %s", status, answer)
	}
	constant := constantServer(b, w, answer)
	client := w.client()

	ask := func(url string) time.Duration {
		start := time.Now()
		response, err := client.Post(url, "application/json", bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			b.Fatal(err)
		}
		response.Body.Close()
		return time.Since(start)
	}
	var webhook, reference time.Duration
	for b.Loop() {
		webhook += ask(w.url + "/mutate-pod")
		reference += ask(constant)
	}
	n := float64(b.N)
	b.ReportMetric(float64(webhook.Microseconds())/n, "webhook-µs")
	b.ReportMetric(float64(reference.Microseconds())/n, "constant-µs")
	b.ReportMetric(float64(webhook)/float64(reference), "ratio")
	b.ReportMetric(float64(len(body)), "bytes")
}

// constantServer reads a request and answers a constant, with the webhook's
// own certificate.
func constantServer(b *testing.B, w *webhook, answer []byte) (url string) {
	b.Helper()
	pair, err := tls.LoadX509KeyPair(w.certFile, w.keyFile)
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "application/json")
		rw.Write(answer)
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	b.Cleanup(server.Close)
	return server.URL
}

// BenchmarkReview is the work without the network: the body decoded, reviewed
// and answered.
func BenchmarkReview(b *testing.B) {
	log := slog.New(slog.DiscardHandler)
	patches, err := patchset.Open(declaredPatches, serverImage)
	if err != nil {
		b.Fatal(err)
	}
	handler := newAdmission(log, log, time.Second).handler(review.New(patches, "v1.0.0", log).Pod)
	body := benchmarkBody(b)
	b.ReportAllocs()
	before := processorTime(b)
	for b.Loop() {
		recorder := record(handler, "/mutate-pod", body)
		if recorder.Code != http.StatusOK {
			b.Fatal(recorder.Body)
		}
	}
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs")
}

// processorTime is the processor time of this process, garbage collection
// included.
func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// record has a handler answer a review, without a connection.
func record(handler http.Handler, path string, review []byte) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(review))
	request.Header.Set("Content-Type", "application/json")
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}
