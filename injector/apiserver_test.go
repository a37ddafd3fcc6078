package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// testAPIPath is where the configuration is.
const testAPIPath = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/imds-webhook"

// testAPI is an API server: one MutatingWebhookConfiguration behind TLS, with the
// checks that the real one makes. Its fields may be read and set while no request is
// under way, and inside update.
type testAPI struct {
	// configuration is what is stored; nil: nothing is.
	configuration *admissionregistrationv1.MutatingWebhookConfiguration
	// token is the only one that may read and write.
	token string
	// beforePatch runs once, before the next patch is looked at.
	beforePatch func()
	// requests are the methods and URLs that were asked for.
	requests []string
	// folder is what the kubelet mounts into a pod that may speak to the server.
	folder string

	mu   sync.Mutex
	http *httptest.Server
}

// newTestAPI starts one with a configuration of two webhooks, and ends it with the
// test.
func newTestAPI(t testing.TB) *testAPI {
	t.Helper()
	s := &testAPI{folder: t.TempDir(), token: "first-token", configuration: newConfiguration()}
	s.http = httptest.NewUnstartedServer(s)
	// Clients that do not trust it are what some tests are about.
	s.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.http.StartTLS()
	t.Cleanup(s.http.Close)
	s.mount(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})))
	s.mount(t, "token", s.token+"\n")
	return s
}

// newConfiguration returns a configuration of two webhooks without a caBundle.
func newConfiguration() *admissionregistrationv1.MutatingWebhookConfiguration {
	path := "/mutate"
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "imds-webhook", ResourceVersion: "1", Labels: map[string]string{"a": "b"}},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "one.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Name: "imds-webhook", Namespace: "kubevirt-imds", Path: &path}}},
			{Name: "two.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Name: "imds-webhook", Namespace: "kubevirt-imds"}}},
		},
	}
}

// mount writes a file of folder.
func (s *testAPI) mount(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.folder, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// getenv is the environment of a pod.
func (s *testAPI) getenv(name string) string {
	host, port, _ := net.SplitHostPort(s.http.Listener.Addr().String())
	return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
}

// handle has another handler answer from now on.
func (s *testAPI) handle(handler http.Handler) { s.http.Config.Handler = handler }

// update changes what is stored, as another client would.
func (s *testAPI) update(change func(*testAPI)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
	s.nextVersion()
}

func (s *testAPI) nextVersion() {
	if s.configuration != nil {
		version, _ := strconv.Atoi(s.configuration.ResourceVersion)
		s.configuration.ResourceVersion = strconv.Itoa(version + 1)
	}
}

// ServeHTTP answers GET and strategic merge PATCH of the configuration.
func (s *testAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.String())
	if r.Method == http.MethodPatch && s.beforePatch != nil {
		s.beforePatch()
		s.nextVersion()
		s.beforePatch = nil
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		refuseTestRequest(w, http.StatusUnauthorized, "Unauthorized")
	case r.URL.Path != testAPIPath:
		refuseTestRequest(w, http.StatusForbidden, "User cannot "+r.Method+" "+r.URL.Path)
	case s.configuration == nil:
		refuseTestRequest(w, http.StatusNotFound, `mutatingwebhookconfigurations "imds-webhook" not found`)
	case r.Method == http.MethodGet:
		json.NewEncoder(w).Encode(s.configuration)
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/strategic-merge-patch+json":
		s.patch(w, r.Body)
	default:
		refuseTestRequest(w, http.StatusUnsupportedMediaType, r.Method+" of "+r.Header.Get("Content-Type"))
	}
}

func (s *testAPI) patch(w http.ResponseWriter, body io.Reader) {
	patch, err := io.ReadAll(body)
	if err != nil {
		refuseTestRequest(w, http.StatusBadRequest, err.Error())
		return
	}
	var wanted metav1.PartialObjectMetadata
	if err := json.Unmarshal(patch, &wanted); err != nil {
		refuseTestRequest(w, http.StatusBadRequest, err.Error())
		return
	}
	if wanted.ResourceVersion != s.configuration.ResourceVersion {
		refuseTestRequest(w, http.StatusConflict, "the object has been modified")
		return
	}
	before, err := json.Marshal(s.configuration)
	if err != nil {
		refuseTestRequest(w, http.StatusInternalServerError, err.Error())
		return
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, s.configuration)
	if err != nil {
		refuseTestRequest(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	s.configuration = new(admissionregistrationv1.MutatingWebhookConfiguration)
	if err := json.Unmarshal(after, s.configuration); err != nil {
		refuseTestRequest(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	s.nextVersion()
	json.NewEncoder(w).Encode(s.configuration)
}

func refuseTestRequest(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"kind":"Status","message":%q}`, message)
}
