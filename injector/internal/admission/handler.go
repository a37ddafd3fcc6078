package admission

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
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/injector/annotation"
)

const (
	// maxObject is how large an object the API server takes, in bytes
	// (MaxRequestBodyBytes in k8s.io/apiserver/pkg/server/config.go).
	maxObject = 3 << 20
	// maxBody is the limit of a request's body: an update comes with the old
	// object beside the new.
	maxBody = 2*maxObject + maxEnvelope
	// maxEnvelope is for what is around the objects.
	maxEnvelope = 64 << 10
	// maxSmall is the limit of a body that has one of the many places. The
	// largest pod that KubeVirt made for us has 13 KB.
	maxSmall = 256 << 10

	smallPlaces = 32
	largePlaces = 2

	// bodyTime is how long a client may take for the body: longer ones hold a
	// place that others wait for.
	bodyTime = 2 * time.Second
)

// Server answers the API server's requests. Its zero value is not usable.
type Server struct {
	log *slog.Logger
	// small and large bound the bodies that are held.
	small, large *gate
	// reviews bounds the trees that are made of them.
	reviews chan struct{}

	mu       sync.Mutex
	reported time.Time // when a refused request was logged
	silent   int       // refused requests since then
}

// NewServer returns a Server whose requests share one bound.
func NewServer(log *slog.Logger) *Server {
	return &Server{
		log:     log,
		small:   newGate(smallPlaces),
		large:   newGate(largePlaces),
		reviews: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// failure is an error with its HTTP status.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }

// Handler answers the API server's POST requests by what review decides.
func (s *Server) Handler(review Review) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response, failed := s.answer(w, r, review)
		if failed != nil {
			s.report(r, failed)
			http.Error(w, failed.Error(), failed.status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(response); err != nil {
			s.log.Warn("answer not sent", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		}
	})
}

// report logs one refused request a second: anybody can send them.
func (s *Server) report(r *http.Request, failed *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.reported) < time.Second {
		s.silent++
		return
	}
	s.log.Warn("request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "status", failed.status, "err", failed.err, "unreported", s.silent)
	s.reported, s.silent = time.Now(), 0
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, review Review) (*admissionv1.AdmissionReview, *failure) {
	contentType := r.Header.Get("Content-Type")
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/json" {
		return nil, &failure{http.StatusUnsupportedMediaType,
			fmt.Errorf("content type %s is not supported: send application/json", annotation.Quote(contentType))}
	}
	gate, limit := s.small, int64(maxSmall)
	if r.ContentLength < 0 || r.ContentLength > maxSmall {
		gate, limit = s.large, maxBody
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	leave, err := gate.enter(r.Context(), host)
	if err != nil {
		return nil, &failure{http.StatusServiceUnavailable, err}
	}
	defer leave()

	body, failed := read(w, r, limit)
	if failed != nil {
		return nil, failed
	}
	s.reviews <- struct{}{}
	defer func() { <-s.reviews }()
	request, err := parse(body)
	if err != nil {
		return nil, &failure{http.StatusBadRequest, err}
	}
	return respond(request, review, s.log.With("path", r.URL.Path)), nil
}

// read reads the body, which has a place.
func read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *failure) {
	// Where it cannot be set the connection is gone, and reading says so.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	var body []byte
	var err error
	reader := http.MaxBytesReader(w, r.Body, limit)
	if r.ContentLength >= 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(reader, body)
	} else {
		body, err = io.ReadAll(reader)
	}
	var tooMuch *http.MaxBytesError
	switch {
	case errors.As(err, &tooMuch):
		return nil, tooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &failure{http.StatusRequestTimeout, fmt.Errorf("the body took more than %s", bodyTime)}
	case err != nil:
		return nil, &failure{http.StatusBadRequest, fmt.Errorf("the body cannot be read: %w", err)}
	}
	return body, nil
}

func tooLarge(limit int64) *failure {
	return &failure{http.StatusRequestEntityTooLarge, fmt.Errorf("the body has more than %d bytes", limit)}
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
		log.Error("review failed", "namespace", request.Namespace, "name", request.ObjectName(), "err", err)
		response = &admissionv1.AdmissionResponse{UID: response.UID}
		response.Result = status(http.StatusInternalServerError, metav1.StatusReasonInternalError,
			"internal error: "+err.Error()+": see the log of imds-webhook")
	} else if !verdict.Allowed {
		response.Result = status(http.StatusForbidden, metav1.StatusReasonForbidden, verdict.Reason)
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

func status(code int32, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}
}
