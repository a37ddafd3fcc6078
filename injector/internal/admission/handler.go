package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// maxBody is the limit of a request's body in bytes. The API server takes
// requests of up to 3 MiB; an update comes with the old object beside the new.
const maxBody = 2 * 3 << 20

// Handler answers the API server's POST requests by what review decides.
func Handler(review Review, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, status, err := read(w, r)
		if err != nil {
			log.Warn("request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "status", status, "err", err)
			http.Error(w, err.Error(), status)
			return
		}
		response := respond(request, review, log.With("path", r.URL.Path))
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(response); err != nil {
			log.Warn("answer not sent", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		}
	})
}

// read returns the request, or an HTTP status and the reason for it.
func read(w http.ResponseWriter, r *http.Request) (*Request, int, error) {
	contentType := r.Header.Get("Content-Type")
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/json" {
		return nil, http.StatusUnsupportedMediaType,
			fmt.Errorf("content type %q is not supported: send application/json", contentType)
	}
	var review struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Request    *Request `json:"request"`
	}
	err := jsontree.Decode(http.MaxBytesReader(w, r.Body, maxBody), &review)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body has more than %d bytes", maxBody)
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("the body is not an AdmissionReview: %w", err)
	case review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview":
		return nil, http.StatusBadRequest, fmt.Errorf(
			"%.63q of %.63q is not supported: set admissionReviewVersions to v1 in the webhook's configuration, so that it gets an AdmissionReview of admission.k8s.io/v1",
			review.Kind, review.APIVersion)
	case review.Request == nil || review.Request.UID == "":
		return nil, http.StatusBadRequest, errors.New("the AdmissionReview has no request with a uid")
	}
	return review.Request, http.StatusOK, nil
}

// respond turns the verdict, or the fault, into the answer.
func respond(request *Request, review Review, log *slog.Logger) *admissionv1.AdmissionReview {
	verdict, err := decide(request, review, log)
	response := &admissionv1.AdmissionResponse{
		UID:      types.UID(request.UID),
		Allowed:  verdict.Allowed,
		Warnings: verdict.Warnings,
	}
	if err == nil && verdict.Patch != nil {
		patchType := admissionv1.PatchTypeJSONPatch
		response.PatchType = &patchType
		response.Patch, err = json.Marshal(verdict.Patch)
	}
	if err != nil {
		log.Error("review failed", "namespace", request.Namespace, "name", request.Name, "err", err)
		response = &admissionv1.AdmissionResponse{UID: response.UID}
		response.Result = failure(http.StatusInternalServerError, metav1.StatusReasonInternalError,
			"internal error: "+err.Error()+": see the log of imds-webhook")
	} else if !verdict.Allowed {
		response.Result = failure(http.StatusForbidden, metav1.StatusReasonForbidden, verdict.Reason)
	}
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Response: response,
	}
}

// decide calls review and turns a panic into an error.
func decide(request *Request, review Review, log *slog.Logger) (verdict Verdict, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			log.Error("review panicked", "cause", cause, "stack", string(debug.Stack()))
			verdict, err = Verdict{}, fmt.Errorf("panic: %v", cause)
		}
	}()
	return review(request)
}

func failure(code int32, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}
}
