package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/example/kubevirt-imds/injector/selfsigned"
)

var update = flag.Bool("update", false, "write the expected verdicts beside the fixtures, and testdata/metrics.txt, anew")

const (
	// declaredPatches is the folder that the overlays ship.
	declaredPatches = "../kustomize/sidecar"
	// leastPatches is for cases that are not about what is shipped.
	leastPatches = "testdata/patches"
	serverImage  = "registry.example/kubevirt-imds-server:v1.0.0"
	// serviceName is the default of --service.
	serviceName = "imds-webhook.kubevirt-imds.svc"
)

// The fixtures have it.
func init() { version = "v1.0.0" }

// immediately is the timing of tests that are not about time.
var immediately = func() timing {
	timing := productionTiming
	timing.withdrawal = func() <-chan time.Time { return time.After(0) }
	return timing
}()

// webhook is the program under test, running in this process on sockets of
// its own.
type webhook struct {
	t         testing.TB
	url       string // https, by IP address
	healthURL string // plain http
	certFile  string
	keyFile   string
	patches   string
	pod       podEnvironment // only --self-signed looks at it
	ca        *x509.CertPool
	log       *logBuffer
	terminate context.CancelFunc // SIGTERM
	exit      <-chan int
}

// startWebhook runs imds-webhook with the patches of a folder, and ends it with
// the test.
func startWebhook(t testing.TB, patches string, timing timing) *webhook {
	t.Helper()
	w := newWebhook(t, patches)
	w.renewCertificate(time.Hour)
	w.start(timing, "--tls-cert", w.certFile, "--tls-key", w.keyFile)
	return w
}

// newWebhook has no certificate yet.
func newWebhook(t testing.TB, patches string) *webhook {
	dir := t.TempDir()
	return &webhook{
		t:        t,
		certFile: filepath.Join(dir, "tls.crt"),
		keyFile:  filepath.Join(dir, "tls.key"),
		patches:  patches,
		ca:       x509.NewCertPool(),
		log:      newLogBuffer(),
	}
}

func (w *webhook) start(timing timing, certificateFlags ...string) {
	w.t.Helper()
	ctx, terminate := context.WithCancel(context.Background())
	exit := make(chan int, 1)
	w.terminate, w.exit = terminate, exit
	args := append([]string{
		"--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0",
		"--patches", w.patches, "--server-image", serverImage,
	}, certificateFlags...)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		exit <- run(ctx, args, w.pod, io.Discard, w.log, timing)
	}()
	w.t.Cleanup(func() {
		terminate()
		<-ended
	})
	line := w.log.wait(w.t, "msg=listening")
	addresses := regexp.MustCompile(`webhook=(\S+) health=(\S+)`).FindStringSubmatch(line)
	w.url, w.healthURL = "https://"+addresses[1], "http://"+addresses[2]
}

// renewCertificate replaces the certificate's files by a pair of a new CA.
func (w *webhook) renewCertificate(lifetime time.Duration) {
	w.t.Helper()
	bundle := issue(w.t, lifetime, serviceName, "127.0.0.1")
	w.ca.AppendCertsFromPEM(bundle.CA)
	w.replacePair(bundle)
}

// replacePair replaces the certificate's files.
func (w *webhook) replacePair(bundle *selfsigned.Bundle) {
	w.t.Helper()
	replaceFile(w.t, w.certFile, bundle.Certificate)
	replaceFile(w.t, w.keyFile, bundle.Key)
}

func issue(t testing.TB, lifetime time.Duration, names ...string) *selfsigned.Bundle {
	t.Helper()
	bundle, err := selfsigned.Issue(lifetime, names...)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// replaceFile moves a new file over path, as the kubelet and every careful
// writer does.
func replaceFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// in is the same webhook seen from a subtest.
func (w *webhook) in(t testing.TB) *webhook {
	seen := *w
	seen.t = t
	return &seen
}

// client returns an HTTP client that trusts the webhook's CA. Each has its own
// connections.
func (w *webhook) client() *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca}, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// review sends an admission request as the API server would.
func (w *webhook) review(path string, request map[string]any) *admissionv1.AdmissionResponse {
	w.t.Helper()
	status, body := w.post(path+"?timeout=10s", "application/json", reviewOf(w.t, request))
	if status != http.StatusOK {
		w.t.Fatalf("status %d: %s", status, body)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		w.t.Fatalf("answer %s: %v", body, err)
	}
	if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || review.Response == nil {
		w.t.Fatalf("answer is not an AdmissionReview with a response: %s", body)
	}
	if string(review.Response.UID) != request["uid"] {
		w.t.Fatalf("answer has uid %q, request had %q", review.Response.UID, request["uid"])
	}
	return review.Response
}

func (w *webhook) post(path, contentType string, body []byte) (status int, answer []byte) {
	w.t.Helper()
	response, err := w.client().Post(w.url+path, contentType, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, answer
}

// ready asks /readyz.
func (w *webhook) ready() (status int, body string) {
	w.t.Helper()
	return w.health("/readyz")
}

// health asks one of the kubelet's two questions.
func (w *webhook) health(path string) (status int, body string) {
	w.t.Helper()
	response, err := http.Get(w.healthURL + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// reviewOf wraps a request in an AdmissionReview.
func reviewOf(t testing.TB, request map[string]any) []byte {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"apiVersion": "admission.k8s.io/v1",
		"kind":       "AdmissionReview",
		"request":    request,
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// podRequest is the creation of a pod in namespace tenant-a.
func podRequest(pod json.RawMessage) map[string]any {
	return map[string]any{
		"uid":       "7a9f0f5c-3f0e-4f2a-8d52-0f3a5b1c2d3e",
		"kind":      map[string]any{"group": "", "version": "v1", "kind": "Pod"},
		"resource":  map[string]any{"group": "", "version": "v1", "resource": "pods"},
		"namespace": "tenant-a",
		"operation": "CREATE",
		"userInfo":  map[string]any{"username": "system:serviceaccount:kubevirt:kubevirt-controller"},
		"object":    pod,
		"oldObject": nil,
		"dryRun":    false,
		"options":   map[string]any{"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
	}
}

// vmRequest is the creation of a VirtualMachine, or its update where there is
// an old one.
func vmRequest(vm, old json.RawMessage) map[string]any {
	request := map[string]any{
		"uid":       "b1e6a2f0-58d4-4a0e-9a55-6b6f2d1f7c11",
		"kind":      map[string]any{"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"},
		"resource":  map[string]any{"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
		"namespace": "tenant-a",
		"name":      "web-01",
		"operation": "CREATE",
		"object":    vm,
	}
	if old != nil {
		request["operation"], request["oldObject"] = "UPDATE", old
	}
	return request
}

// vmiRequest is the creation of a VirtualMachineInstance, or its update where
// there is an old one.
func vmiRequest(vmi, old json.RawMessage) map[string]any {
	request := map[string]any{
		"uid":       "3c1f0a55-3f0e-4a57-9d0b-6f0e3c2b7d90",
		"kind":      map[string]any{"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachineInstance"},
		"resource":  map[string]any{"group": "kubevirt.io", "version": "v1", "resource": "virtualmachineinstances"},
		"namespace": "tenant-a",
		"name":      "web-01",
		"operation": "CREATE",
		"object":    vmi,
	}
	if old != nil {
		request["operation"], request["oldObject"] = "UPDATE", old
	}
	return request
}

// logBuffer keeps the program's log and lets a test wait for a line.
type logBuffer struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed and replaced at each write
}

func newLogBuffer() *logBuffer { return &logBuffer{grown: make(chan struct{})} }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.grown)
	b.grown = make(chan struct{})
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// wait returns the first line that contains part.
func (b *logBuffer) wait(t testing.TB, part string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		text, grown := b.text.String(), b.grown
		b.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.Contains(line, part) {
				return line
			}
		}
		select {
		case <-grown:
		case <-deadline:
			t.Fatalf("no line with %q in the log:\n%s", part, text)
		}
	}
}

// count returns how many lines contain part.
func (b *logBuffer) count(part string) int {
	n := 0
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}
