package admission

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// answer sends a minimal request to a handler over HTTP.
func answer(t *testing.T, review Review) (*admissionv1.AdmissionResponse, string) {
	t.Helper()
	log := new(strings.Builder)
	server := httptest.NewServer(NewServer(slog.New(slog.NewTextHandler(log, nil))).Handler(review))
	defer server.Close()
	response, err := http.Post(server.URL, "application/json", strings.NewReader(
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","namespace":"tenant-a","object":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var decoded admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&decoded); err != nil {
		t.Fatal(err)
	}
	if decoded.Response == nil || decoded.Response.UID != "u-1" {
		t.Fatalf("got %+v", decoded)
	}
	return decoded.Response, log.String()
}

func TestFaultsRefuseAndAreLogged(t *testing.T) {
	for name, test := range map[string]struct {
		review  Review
		message string
		logged  string
	}{
		"error": {func(*Request) (Verdict, error) { return Allow(), errors.New("no patches") },
			"internal error: no patches: see the log of imds-webhook", "no patches"},
		"panic": {func(*Request) (Verdict, error) { panic("at the disco") },
			"internal error: panic: at the disco: see the log of imds-webhook", "handler_test.go"},
		"patch that cannot be encoded": {func(*Request) (Verdict, error) {
			var value any = func() {}
			return Verdict{Allowed: true, Patch: []jsontree.Operation{{Op: "add", Value: &value}}}, nil
		}, "internal error: json: ", "unsupported type"},
	} {
		t.Run(name, func(t *testing.T) {
			response, log := answer(t, test.review)
			if response.Allowed || response.Patch != nil || response.PatchType != nil ||
				response.Result.Code != http.StatusInternalServerError || !strings.Contains(response.Result.Message, test.message) {
				t.Errorf("got %+v", response)
			}
			if !strings.Contains(log, test.logged) {
				t.Errorf("log without %q:\n%s", test.logged, log)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	response, log := answer(t, func(*Request) (Verdict, error) { return Deny("not here"), nil })
	if response.Allowed || response.Result.Code != http.StatusForbidden || response.Result.Message != "not here" || log != "" {
		t.Errorf("refusal: %+v, log %s", response, log)
	}
	response, _ = answer(t, func(*Request) (Verdict, error) { return Allow("careful"), nil })
	if !response.Allowed || response.Result != nil || response.Patch != nil || response.PatchType != nil || response.Warnings[0] != "careful" {
		t.Errorf("pass: %+v", response)
	}
}
