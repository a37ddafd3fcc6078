package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/example/kubevirt-imds/injector/internal/review"
)

// Outcomes of a request that comes to no review.
var (
	failed     = review.Outcome{Result: "error", Reason: "internal"}
	noReview   = review.Outcome{Result: "error", Reason: "request"}
	turnedAway = review.Outcome{Result: "turned_away", Reason: "busy"}
	tooSlow    = review.Outcome{Result: "turned_away", Reason: "timeout"}
)

// outcomeOf is that of an HTTP error.
func outcomeOf(status int) review.Outcome {
	switch status {
	case http.StatusInternalServerError:
		return failed
	case http.StatusRequestTimeout, http.StatusServiceUnavailable:
		return tooSlow
	}
	return noReview
}

// admissionMetrics counts admissions. Every label has a value of a fixed set: /metrics is for everybody.
type admissionMetrics struct {
	set *metrics.Set
}

func newAdmissionMetrics() admissionMetrics {
	metrics.ExposeMetadata(true)
	m := admissionMetrics{metrics.NewSet()}
	for _, pattern := range []string{"POST /mutate-pod", "POST /mutate-virtualmachine", "POST /mutate-virtualmachineinstance"} {
		// From zero, so that a rate has the first of each.
		for _, outcome := range append(review.Outcomes(), failed, noReview, turnedAway, tooSlow) {
			m.of(pattern, outcome)
		}
		m.duration(pattern)
	}
	return m
}

// of returns the counter of requests that match a pattern of the paths, by what they came to.
func (m admissionMetrics) of(pattern string, outcome review.Outcome) *metrics.Counter {
	return m.set.GetOrCreateCounter(fmt.Sprintf("imds_webhook_admissions_total{resource=%q,result=%q,reason=%q}", resourceOf(pattern), outcome.Result, outcome.Reason))
}

// durationBounds are in seconds: from a review alone to the API server's patience.
var durationBounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}

// duration is of requests, from their headers to their answer.
func (m admissionMetrics) duration(pattern string) *metrics.PrometheusHistogram {
	return m.set.GetOrCreatePrometheusHistogramExt(fmt.Sprintf("imds_webhook_admission_duration_seconds{resource=%q}", resourceOf(pattern)), durationBounds)
}

// resourceOf is "pods" for "POST /mutate-pod".
func resourceOf(pattern string) string {
	_, kind, _ := strings.Cut(pattern, "-")
	return kind + "s"
}

// metrics adds what is known of the service to the admissions.
func (s *service) metrics(m admissionMetrics, patchesHash string) http.HandlerFunc {
	isNil := func(err error) float64 {
		if err == nil {
			return 1
		}
		return 0
	}
	m.set.NewGauge(fmt.Sprintf("imds_webhook_info{version=%q,patches=%q}", buildVersion(), patchesHash), func() float64 { return 1 })
	m.set.NewGauge("imds_webhook_ready", func() float64 { return isNil(s.notReady(s.certificates.look(time.Now()))) })
	m.set.NewGauge("imds_webhook_certificate_expiry_timestamp_seconds", func() float64 {
		return float64(s.certificates.look(time.Now()).expires.Unix())
	})
	if s.publisher != nil {
		m.set.NewGauge("imds_webhook_ca_published", func() float64 { return isNil(s.publisher.status()) })
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		m.set.WritePrometheus(w)
	}
}
