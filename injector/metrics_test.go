package main

import (
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/internal/review"
)

// scrape returns the values of /metrics by their series.
func (w *webhook) scrape() map[string]float64 {
	w.t.Helper()
	status, body := w.health("/metrics")
	if status != http.StatusOK {
		w.t.Fatalf("/metrics: %d %s", status, body)
	}
	values := map[string]float64{}
	for line := range strings.Lines(body) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if series == "#" {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			w.t.Fatalf("%q: %v", line, err)
		}
		values[series] = number
	}
	return values
}

func admissions(resource, result, reason string) string {
	return `imds_webhook_admissions_total{resource="` + resource + `",result="` + result + `",reason="` + reason + `"}`
}

// names of series without their values.
func names(series map[string]float64) (names []string) {
	for name := range series {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestMetricsCountTheFixtures sends every case, and a few that are none: what is counted is what was answered, and
// no series comes that was not there before.
func TestMetricsCountTheFixtures(t *testing.T) {
	w := startWebhook(t, leastPatches, immediately)
	before := w.scrape()
	requests, refusals, patches, notInjected := 0., 0., 0., 0.
	for kind, path := range map[string]string{"pod": "/mutate-pod", "virtualmachine": "/mutate-virtualmachine", "virtualmachineinstance": "/mutate-virtualmachineinstance"} {
		for _, name := range cases(t, kind) {
			object, old := readCase(t, kind, name)
			request := map[string]any{"pod": podRequest(object), "virtualmachine": vmRequest(object, old), "virtualmachineinstance": vmiRequest(object, old)}[kind]
			response := w.review(path, request.(map[string]any))
			requests++
			if !response.Allowed {
				refusals++
			} else if strings.Contains(string(response.Patch), "not-injected") && slices.ContainsFunc(response.Warnings, func(warning string) bool { return strings.HasPrefix(warning, "IMDS is not injected") }) {
				notInjected++
			} else if response.Patch != nil {
				patches++
			}
			if kind != "pod" {
				w.review(strings.Replace(path, "mutate", "repair", 1), request.(map[string]any))
			}
		}
	}
	counted := w.scrape()
	sum := func(parts ...string) (sum float64) {
		for series, value := range counted {
			if strings.HasPrefix(series, "imds_webhook_admissions_total{") && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(series, part) }) {
				sum += value
			}
		}
		return sum
	}
	if got := sum(`result="refused"`); got != refusals || got == 0 {
		t.Errorf("%v refused, want %v", got, refusals)
	}
	if got := sum(`result="not_injected"`); got != notInjected || got == 0 {
		t.Errorf("%v not injected, want %v", got, notInjected)
	}
	if got := sum(`result="error"`) + sum(`result="turned_away"`); got != 0 {
		t.Errorf("%v errors", got)
	}
	if got := sum(`"pods"`, `result="patched"`) + sum(`"pods"`, `result="tolerated"`); got == 0 || got > patches {
		t.Errorf("%v pods patched or tolerated, of %v", got, patches)
	}
	durations := 0.
	for series, value := range counted {
		if strings.HasPrefix(series, "imds_webhook_admission_duration_seconds_count{") {
			durations += value
		}
	}
	if got := sum(); got != durations || got < requests {
		t.Errorf("%v admissions, %v durations, of %v requests", got, durations, requests)
	}

	// What is no review.
	w.post("/mutate-pod", "application/json", []byte(`{}`))
	w.post("//mutate-pod", "application/json", []byte(`{}`))
	w.post("/mutate-tenant-a", "application/json", []byte(`{}`))
	w.post("/mutate-pod", "text/plain", nil)
	after := w.scrape()
	if got := after[admissions("pods", "error", "request")]; got < 2 {
		t.Errorf("%v requests that are no reviews", got)
	}
	if diff := cmp.Diff(names(before), names(after)); diff != "" {
		t.Errorf("series (-before +after):\n%s", diff)
	}
	if series := strings.Join(names(after), "\n"); strings.Contains(series, "tenant") || strings.Contains(series, "web-01") {
		t.Errorf("a tenant's text in\n%s", series)
	}
	for _, series := range []string{
		admissions("pods", "refused", "reserved_name"), admissions("pods", "refused", "host_namespace"), admissions("pods", "refused", "owner"),
		admissions("pods", "not_injected", "annotation"), admissions("pods", "not_injected", "spec"),
		admissions("pods", "not_injected", "reserved_name"), admissions("pods", "not_injected", "no_verdict"),
		admissions("pods", "tolerated", "annotation"), admissions("virtualmachines", "tolerated", "annotation"),
		admissions("virtualmachines", "refused", "annotation"), admissions("virtualmachines", "refused", "spec"), admissions("virtualmachines", "refused", "template"),
		admissions("virtualmachineinstances", "refused", "annotation"), admissions("virtualmachineinstances", "refused", "spec"),
	} {
		if after[series] == 0 {
			t.Errorf("no case has %s", series)
		}
	}
}

func TestMetricsOfFaultsAndOfWhoIsTurnedAway(t *testing.T) {
	if outcomeOf(http.StatusInternalServerError) != failed || outcomeOf(http.StatusRequestTimeout) != tooSlow || outcomeOf(http.StatusBadRequest) != noReview {
		t.Error("an error is counted as another one")
	}
	log := slog.New(slog.DiscardHandler)
	a := newAdmission(log, log, time.Minute)
	faulty := http.NewServeMux()
	faulty.Handle("POST /mutate-pod", a.handler(func(*review.Request) review.Verdict { panic("nobody has thought of that") }))
	answer := record(faulty, "/mutate-pod", reviewOf(t, podRequest(fixture(t, "masquerade"))))
	if got := a.metrics.of("POST /mutate-pod", failed).Get(); got != 1 || answer.Code != http.StatusInternalServerError {
		t.Errorf("%v faults, answered %d", got, answer.Code)
	}
}

func TestMetricsOfTheService(t *testing.T) {
	api := newTestAPI(t)
	api.configuration = nil
	paused, again := make(chan int), make(chan time.Time)
	timing := immediately
	timing.publish = func(failures int) <-chan time.Time { paused <- failures; return again }
	w := startSelfSigned(t, api, timing)
	want := func(name string, want float64) {
		t.Helper()
		if got := w.scrape()[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	<-paused
	want("imds_webhook_ca_published", 0)
	want("imds_webhook_ready", 0)
	api.update(func(api *testAPI) { api.configuration = newConfiguration() })
	again <- time.Time{}
	<-paused
	want("imds_webhook_ca_published", 1)
	want("imds_webhook_ready", 1)
	hash := regexp.MustCompile(`hash=([0-9a-f]{12}) `).FindStringSubmatch(w.log.wait(t, "patches read"))
	if hash == nil {
		t.Fatalf("no hash in %s", w.log)
	}
	want(`imds_webhook_info{version="`+buildVersion()+`",patches="`+hash[1]+`"}`, 1)
	if years := w.scrape()["imds_webhook_certificate_expiry_timestamp_seconds"] - float64(time.Now().Unix()); years < 9*365*24*3600 {
		t.Errorf("the certificate expires in %v s", years)
	}
	// For the tests of alerts and pages. Version and hash are of the build.
	series := regexp.MustCompile(`(version|patches)="[^"]*"`).ReplaceAllString(strings.Join(names(w.scrape()), "\n")+"\n", `$1=""`)
	const file = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(file, []byte(series), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(file)
	if diff := cmp.Diff(string(committed), series); err != nil || diff != "" {
		t.Errorf("%s: %v (-committed +told): run the test with -update\n%s", file, err, diff)
	}
	go func() { again <- time.Time{}; <-paused }()
}

// TestMetricsFollowARenewal: an expiry is that of what is in use; without a CA of its own nothing is said of one.
func TestMetricsFollowARenewal(t *testing.T) {
	w := startWebhook(t, leastPatches, immediately)
	const name = "imds_webhook_certificate_expiry_timestamp_seconds"
	before := w.scrape()
	if _, published := before["imds_webhook_ca_published"]; published {
		t.Error("it tells of a CA that it does not publish")
	}
	w.renewCertificate(48 * time.Hour)
	w.ready()
	if after := w.scrape(); after[name] < before[name]+46*3600 {
		t.Errorf("%v, before %v", after[name], before[name])
	}
}
