package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/certificate"
)

// healthHandler answers the kubelet. /healthz says that the process is alive.
// /readyz says whether the API server can be sent here; a renewed certificate
// that is not in use is named, but does not make a replica unready: it works with
// the last good one, and all replicas would be gone at once.
func healthHandler(certificates *certificate.Source, publication *publication, draining *atomic.Bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "OK")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		serving, certificateProblem := certificates.Current()
		if err := certificate.Valid(serving, time.Now()); err != nil {
			http.Error(w, errors.Join(err, certificateProblem).Error(), http.StatusServiceUnavailable)
			return
		}
		if err := publication.problem(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "OK")
		if certificateProblem != nil {
			fmt.Fprintf(w, "the last good one stays in use: %v\n", certificateProblem)
		}
	})
	return mux
}
