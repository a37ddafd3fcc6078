package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

const (
	// maxObject is how large an object the API server takes, in bytes
	// (MaxRequestBodyBytes in k8s.io/apiserver/pkg/server/config.go).
	maxObject = 3 << 20
	// maxBody is the limit of a request's body: an update comes with the old
	// object beside the new, and something around them.
	maxBody = 2*maxObject + 64<<10
	// maxSmall is the limit of a body that has one of the many places. The
	// largest pod that KubeVirt made for us has 13 KB.
	maxSmall = 256 << 10

	smallPlaces = 32
	largePlaces = 2

	// bodyTime and answerTime are how long a client may take to send the body,
	// in a place that others wait for, and to take the answer.
	bodyTime   = 2 * time.Second
	answerTime = 2 * time.Second
)

// admission answers the API server's requests, with bounds on what they may cost
// together.
type admission struct {
	log *slog.Logger
	// small and large bound the bodies that are held.
	small, large *gate
	// reviews bounds the trees that are made of them.
	reviews chan struct{}
}

func newAdmission(log *slog.Logger) *admission {
	return &admission{log: log, small: newGate(smallPlaces), large: newGate(largePlaces), reviews: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// handler answers POST requests by what decide decides.
func (a *admission) handler(decide review.Func) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, status, err := a.answer(w, r, decide)
		// A client that does not take the answer must not hold it for long.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime))
		if err != nil {
			a.log.Warn("request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "status", status, "err", err)
			http.Error(w, err.Error(), status)
			return
		}
		if proven, ok := r.Context().Value(provenKey{}).(*atomic.Bool); ok {
			proven.Store(true)
		}
		w.Header().Set("Content-Type", "application/json")
		if _, err := w.Write(answer); err != nil {
			a.log.Warn("answer not sent", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		}
	})
}

// answer returns the answer, or the status and text of an HTTP error.
func (a *admission) answer(w http.ResponseWriter, r *http.Request, decide review.Func) ([]byte, int, error) {
	contentType := r.Header.Get("Content-Type")
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/json" {
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("content type %s is not supported: send application/json", annotation.Quote(contentType))
	}
	gate := a.small
	switch {
	case r.ContentLength < 0:
		return nil, http.StatusLengthRequired, errors.New("the body has no length: send Content-Length")
	case r.ContentLength > maxBody:
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body has more than %d bytes", maxBody)
	case r.ContentLength > maxSmall:
		gate = a.large
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	leave, err := gate.enter(r.Context(), host)
	if err != nil {
		return nil, http.StatusServiceUnavailable, err
	}
	defer leave()

	body, status, err := read(w, r)
	if err != nil {
		return nil, status, err
	}
	select {
	case a.reviews <- struct{}{}:
	case <-r.Context().Done():
		return nil, http.StatusServiceUnavailable, r.Context().Err()
	}
	defer func() { <-a.reviews }()
	request, err := review.ParseRequest(body)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	answer, err := a.respond(request, decide)
	if err != nil {
		// No verdict: the webhook's failurePolicy says what becomes of the object.
		a.log.Error("review failed", "path", r.URL.Path, "namespace", request.Namespace, "name", request.ObjectName(), "err", err)
		return nil, http.StatusInternalServerError, fmt.Errorf("internal error: %w: see the log of imds-webhook", err)
	}
	return answer, http.StatusOK, nil
}

// read reads the body, which has a place.
func read(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	// Where it cannot be set the connection is gone, and reading says so.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	body = make([]byte, r.ContentLength)
	switch _, err = io.ReadFull(r.Body, body); {
	case err == nil:
		return body, http.StatusOK, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, http.StatusRequestTimeout, fmt.Errorf("the body took more than %s", bodyTime)
	}
	return nil, http.StatusBadRequest, fmt.Errorf("the body cannot be read: %w", err)
}

// respond turns the verdict into the answer, and a panic into an error.
func (a *admission) respond(request *review.Request, decide review.Func) (answer []byte, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			a.log.Error("review panicked", "cause", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", cause)
		}
	}()
	verdict, err := decide(request)
	if err != nil {
		return nil, err
	}
	response := &admissionv1.AdmissionResponse{UID: types.UID(request.UID), Allowed: verdict.Allowed, Warnings: verdict.Warnings}
	if verdict.Patch != nil {
		response.PatchType = new(admissionv1.PatchTypeJSONPatch)
		if response.Patch, err = json.Marshal(verdict.Patch); err != nil {
			return nil, err
		}
	}
	if !verdict.Allowed {
		response.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: verdict.Reason}
	}
	return json.Marshal(&admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Response: response})
}
