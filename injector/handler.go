package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

const (
	maxObject   = 3 << 20              // MaxRequestBodyBytes in k8s.io/apiserver/pkg/server/config.go
	maxBody     = 2*maxObject + 64<<10 // an update has the old object too; what JSON escapes, such as <, is longer
	maxSmall    = 256 << 10            // the largest pod that KubeVirt made for us has 13 KB
	smallPlaces = 32
	largePlaces = 2
	smallWait   = 8 << 20 // what all of them that wait may hold
	largeWait   = 8 << 20
)

// admission answers the API server's requests, with bounds on what they may cost together.
type admission struct {
	log          *slog.Logger
	strangers    *slog.Logger  // for what is no review
	arrival      time.Duration // of a request that has its place
	small, large *gate         // bound the bodies that are held
	reviewing    chan struct{} // bounds the trees that are made of them
	metrics      admissionMetrics
}

func newAdmission(log, strangers *slog.Logger, arrival time.Duration) *admission {
	return &admission{log: log, strangers: strangers, arrival: arrival, small: newGate(smallPlaces, smallWait), large: newGate(largePlaces, largeWait), reviewing: make(chan struct{}, runtime.GOMAXPROCS(0)), metrics: newAdmissionMetrics()}
}

// bounded lets in a few requests at a time, each until its answer is taken: net/http holds some KB for one.
func (a *admission) bounded(reviews *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, pattern := reviews.Handler(r)
		if pattern == "" {
			a.strangers.Warn("unknown path or method: check the webhook's configuration", "method", r.Method, "path", annotation.Quote(r.URL.Path), "remote", r.RemoteAddr)
			reviews.ServeHTTP(w, r)
			return
		}
		defer a.metrics.duration(pattern).UpdateDuration(time.Now())
		gate := a.small
		if r.ContentLength > maxSmall {
			gate = a.large
		}
		on := r.Context().Value(connectionKey{}).(*connection)
		on.add(1)
		defer on.add(-1)
		client := http.NewResponseController(w)
		_ = client.SetReadDeadline(time.Time{}) // until it has a place
		place, err := gate.enter(r.Context(), on, r.ContentLength, func() {
			_ = client.SetReadDeadline(time.Now())
			_ = client.SetWriteDeadline(time.Now())
		})
		if err != nil {
			outcome := tooSlow
			if errors.Is(err, errBusy) {
				outcome = turnedAway
			}
			a.metrics.of(pattern, outcome).Inc()
			a.strangers.Warn("request turned away", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
			w.WriteHeader(http.StatusServiceUnavailable) // a text would wait to be taken
			return
		}
		defer gate.leave(place)
		_ = client.SetReadDeadline(time.Now().Add(a.arrival))
		on.place(1)
		defer on.place(-1)
		r.Body = meteredBody{r.Body, on.metered}
		reviews.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), placeKey{}, place)))
		_ = client.Flush() // else it would wait for that outside
	})
}

// placeKey is that of a request's place in its context.
type placeKey struct{}

// handler answers POST requests by what decide decides.
func (a *admission) handler(decide review.Func) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, outcome, status, err := a.answer(r, decide)
		if err != nil {
			outcome = outcomeOf(status)
		}
		a.metrics.of(r.Pattern, outcome).Inc()
		if err != nil {
			a.strangers.Warn("request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "status", status, "err", err)
			http.Error(w, err.Error(), status)
			return
		}
		if p, found := r.Context().Value(placeKey{}).(*place); found {
			p.on.reviewed.Store(time.Now().UnixNano())
		}
		w.Header().Set("Content-Type", "application/json")
		if _, err := w.Write(answer); err != nil {
			a.log.Warn("answer not sent", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		}
	})
}

// answer returns the answer, or the status and text of an HTTP error.
func (a *admission) answer(r *http.Request, decide review.Func) (answer []byte, outcome review.Outcome, status int, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			a.log.Error("review panicked", "cause", cause, "stack", string(debug.Stack()))
			status, err = http.StatusInternalServerError, fmt.Errorf("internal error: panic: %v: see the log of imds-webhook", cause)
		}
	}()
	body, status, err := readBody(r)
	if err != nil {
		return nil, outcome, status, err
	}
	if p, found := r.Context().Value(placeKey{}).(*place); found {
		p.reviewed.Store(true)
		defer p.reviewed.Store(false)
	}
	select {
	case a.reviewing <- struct{}{}:
		defer func() { <-a.reviewing }()
	case <-r.Context().Done():
		return nil, outcome, http.StatusServiceUnavailable, r.Context().Err()
	}
	request, err := review.ParseRequest(body)
	if err != nil {
		return nil, outcome, http.StatusBadRequest, err
	}
	request.Remote = r.RemoteAddr
	verdict := decide(request)
	response := &admissionv1.AdmissionResponse{UID: types.UID(request.UID), Allowed: verdict.Allowed, Warnings: verdict.Warnings}
	if verdict.Patch != nil {
		response.PatchType, response.Patch = new(admissionv1.PatchTypeJSONPatch), verdict.Patch
	}
	if !verdict.Allowed {
		response.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: verdict.Reason}
	}
	answer, err = json.Marshal(&admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Response: response})
	return answer, verdict.Outcome, http.StatusInternalServerError, err
}

func readBody(r *http.Request) (body []byte, status int, err error) {
	contentType := r.Header.Get("Content-Type")
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/json" {
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("content type %s is not supported: send application/json", annotation.Quote(contentType))
	}
	switch {
	case r.ContentLength < 0:
		return nil, http.StatusLengthRequired, errors.New("the body has no length: send Content-Length")
	case r.ContentLength > maxBody:
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body has more than %d bytes", maxBody)
	}
	body = make([]byte, r.ContentLength)
	switch _, err := io.ReadFull(r.Body, body); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, http.StatusRequestTimeout, errors.New("the body took too long")
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("the body cannot be read: %w", err)
	}
	return body, 0, nil
}
