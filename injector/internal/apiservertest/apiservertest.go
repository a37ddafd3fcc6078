// Package apiservertest is an API server for tests: one
// MutatingWebhookConfiguration behind TLS, with the checks that the real one
// makes.
package apiservertest

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

// Path is where the configuration is.
const Path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/imds-webhook"

// Server is the API server. Its fields may be read and set while no request is
// under way, and inside Update.
type Server struct {
	// Configuration is what is stored; nil: nothing is.
	Configuration *admissionregistrationv1.MutatingWebhookConfiguration
	// Token is the only one that may read and write.
	Token string
	// BeforePatch runs once, before the next patch is looked at.
	BeforePatch func()
	// Requests are the methods and URLs that were asked for.
	Requests []string
	// Folder is what the kubelet mounts into a pod that may speak to the server.
	Folder string

	mu   sync.Mutex
	http *httptest.Server
}

// New starts a Server with a configuration of two webhooks, and ends it with the
// test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{Folder: t.TempDir(), Token: "first-token", Configuration: NewConfiguration()}
	s.http = httptest.NewUnstartedServer(s)
	// Clients that do not trust it are what some tests are about.
	s.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.http.StartTLS()
	t.Cleanup(s.http.Close)
	s.Mount(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})))
	s.Mount(t, "token", s.Token+"\n")
	return s
}

// NewConfiguration returns a configuration of two webhooks without a caBundle.
func NewConfiguration() *admissionregistrationv1.MutatingWebhookConfiguration {
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

// Mount writes a file of Folder.
func (s *Server) Mount(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Folder, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Getenv is the environment of a pod.
func (s *Server) Getenv(name string) string {
	host, port, _ := net.SplitHostPort(s.http.Listener.Addr().String())
	return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
}

// Handle has another handler answer from now on.
func (s *Server) Handle(handler http.Handler) { s.http.Config.Handler = handler }

// Update changes what is stored, as another client would.
func (s *Server) Update(change func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
	s.nextVersion()
}

func (s *Server) nextVersion() {
	if s.Configuration != nil {
		version, _ := strconv.Atoi(s.Configuration.ResourceVersion)
		s.Configuration.ResourceVersion = strconv.Itoa(version + 1)
	}
}

// ServeHTTP answers GET and strategic merge PATCH of the configuration.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Requests = append(s.Requests, r.Method+" "+r.URL.String())
	if r.Method == http.MethodPatch && s.BeforePatch != nil {
		s.BeforePatch()
		s.nextVersion()
		s.BeforePatch = nil
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer "+s.Token:
		refuse(w, http.StatusUnauthorized, "Unauthorized")
	case r.URL.Path != Path:
		refuse(w, http.StatusForbidden, "User cannot "+r.Method+" "+r.URL.Path)
	case s.Configuration == nil:
		refuse(w, http.StatusNotFound, `mutatingwebhookconfigurations "imds-webhook" not found`)
	case r.Method == http.MethodGet:
		json.NewEncoder(w).Encode(s.Configuration)
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/strategic-merge-patch+json":
		s.patch(w, r.Body)
	default:
		refuse(w, http.StatusUnsupportedMediaType, r.Method+" of "+r.Header.Get("Content-Type"))
	}
}

func (s *Server) patch(w http.ResponseWriter, body io.Reader) {
	patch, err := io.ReadAll(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	var wanted metav1.PartialObjectMetadata
	if err := json.Unmarshal(patch, &wanted); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if wanted.ResourceVersion != s.Configuration.ResourceVersion {
		refuse(w, http.StatusConflict, "the object has been modified")
		return
	}
	before, err := json.Marshal(s.Configuration)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, s.Configuration)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	s.Configuration = new(admissionregistrationv1.MutatingWebhookConfiguration)
	if err := json.Unmarshal(after, s.Configuration); err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	s.nextVersion()
	json.NewEncoder(w).Encode(s.Configuration)
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"kind":"Status","message":%q}`, message)
}
