package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/example/kubevirt-imds/injector/internal/review"
)

// FuzzHandler holds for whatever body there is: an answer of a kind that the
// API server understands, with the uid of the request.
func FuzzHandler(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","object":{"a":[1e3]}}}`))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","object":null,"oldObject":{}}}`))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"1"}}`))
	f.Add([]byte(`{"request":{"resource":7}}`))
	f.Add([]byte(`[[[[`))
	handler := newAdmission(slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler), time.Minute).handler(func(request *review.Request) review.Verdict {
		if request.Object == nil {
			panic("no object")
		}
		return review.Allow()
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		recorder := record(handler, "/mutate-pod", body)
		switch recorder.Code {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusInternalServerError:
		case http.StatusOK:
			var sent struct{ Request struct{ UID string } }
			var answer admissionv1.AdmissionReview
			if err := json.Unmarshal(body, &sent); err != nil {
				t.Fatalf("accepted a body that is no JSON: %v", err)
			}
			if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil || answer.Response == nil {
				t.Fatalf("answer %s: %v", recorder.Body, err)
			}
			if string(answer.Response.UID) != sent.Request.UID {
				t.Errorf("uid %q became %q", sent.Request.UID, answer.Response.UID)
			}
		default:
			t.Errorf("status %d: %s", recorder.Code, recorder.Body)
		}
	})
}
