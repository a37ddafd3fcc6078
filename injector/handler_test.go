package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

// answerOf sends a minimal request to a handler over HTTP. It returns the response,
// or the text of an HTTP error, and the log.
func answerOf(t *testing.T, decide review.Func) (*admissionv1.AdmissionResponse, string, string) {
	t.Helper()
	log := new(strings.Builder)
	server := httptest.NewServer(newAdmission(slog.New(slog.NewTextHandler(log, nil)), slog.New(slog.NewTextHandler(log, nil)), time.Minute).handler(decide))
	defer server.Close()
	response, err := http.Post(server.URL, "application/json", strings.NewReader(
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","namespace":"tenant-a","object":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, response.Status + ": " + string(body), log.String()
	}
	var decoded admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &decoded); err != nil {
		t.Fatal(err)
	}
	if decoded.Response == nil || decoded.Response.UID != "u-1" {
		t.Fatalf("got %+v", decoded)
	}
	return decoded.Response, "", log.String()
}

// The failurePolicy decides about them: a repairing webhook must not refuse.
func TestFaultsAreHTTPErrorsAndLogged(t *testing.T) {
	for name, test := range map[string]struct {
		decide  review.Func
		message string
		logged  string
	}{
		"panic": {func(*review.Request) review.Verdict { panic("at the disco") },
			"internal error: panic: at the disco: see the log of imds-webhook", "handler_test.go"},
		"patch that cannot be encoded": {func(*review.Request) review.Verdict {
			return review.Verdict{Allowed: true, Patch: jsontree.Diff(jsontree.Object{}, jsontree.Object{"a": func() {}})}
		}, "internal error: panic: json: ", "unsupported type"},
	} {
		t.Run(name, func(t *testing.T) {
			response, failure, log := answerOf(t, test.decide)
			if response != nil || !strings.HasPrefix(failure, "500 Internal Server Error: "+test.message) {
				t.Errorf("got %+v, %s", response, failure)
			}
			if !strings.Contains(log, test.logged) {
				t.Errorf("log without %q:\n%s", test.logged, log)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	response, _, log := answerOf(t, func(*review.Request) review.Verdict { return review.Verdict{Reason: "not here"} })
	if response.Allowed || response.Result.Code != http.StatusForbidden || response.Result.Message != "not here" || log != "" {
		t.Errorf("refusal: %+v, log %s", response, log)
	}
	response, _, _ = answerOf(t, func(*review.Request) review.Verdict { return review.Allow("careful") })
	if !response.Allowed || response.Result != nil || response.Patch != nil || response.PatchType != nil || response.Warnings[0] != "careful" {
		t.Errorf("pass: %+v", response)
	}
}
