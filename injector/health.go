package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/certificate"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// healthHandler answers the kubelet. /healthz says that the process is alive.
// /readyz says whether the API server can be sent here; changed files that are
// not in use are named, but do not make a replica unready: it works with the
// last good ones, and all replicas would be gone at once.
func healthHandler(certificates *certificate.Source, publication *publication, patches *patchset.Folder, draining *atomic.Bool) http.Handler {
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
		_, patchesProblem := patches.Current()
		if err := certificate.Valid(serving, time.Now()); err != nil {
			http.Error(w, errors.Join(err, certificateProblem).Error(), http.StatusServiceUnavailable)
			return
		}
		if err := publication.problem(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "OK")
		for _, problem := range []error{certificateProblem, patchesProblem} {
			if problem != nil {
				fmt.Fprintf(w, "the last good one stays in use: %v\n", problem)
			}
		}
	})
	return mux
}
