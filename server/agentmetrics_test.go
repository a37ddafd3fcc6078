package main

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// agentMetrics starts what serves an agent's metrics, and returns their URL.
func agentMetrics(t *testing.T, socket string) (url string, at netip.AddrPort) {
	t.Helper()
	at = freeAddress()
	s := start(t, program(map[string]string{"IMDS_METRICS_SOCKET": socket, "IMDS_METRICS_ADDRESS": at.String()}, "agent-metrics"), at)
	s.log.wait(t, "agent's metrics served")
	return "http://" + at.String() + "/metrics", at
}

// tellOn is an agent that tells a text, and how often it has.
func tellOn(t *testing.T, text string, told *atomic.Int64) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			told.Add(1)
			io.WriteString(conn, text)
			conn.Close()
		}
	}()
	return socket
}

func askMetrics(t *testing.T, method, url, header string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X", header)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// Who asks otherwise, slowly or all the time gets nothing, and holds nothing up for long.
func TestServerOfAgentMetricsIsBounded(t *testing.T) {
	var told atomic.Int64
	url, at := agentMetrics(t, tellOn(t, "imds_agent_pods 1\n", &told))
	for request, want := range map[[3]string]int{
		{"GET", url, ""}:  http.StatusOK,
		{"POST", url, ""}: http.StatusMethodNotAllowed,
		{"GET", strings.TrimSuffix(url, "metrics"), ""}:    http.StatusNotFound,
		{"GET", url + "/x", ""}:                            http.StatusNotFound,
		{"GET", url, strings.Repeat("x", 4*scrapeHeader)}:  http.StatusRequestHeaderFieldsTooLarge,
		{"GET", url + "?debug=1", ""}:                      http.StatusOK,
		{"DELETE", strings.TrimSuffix(url, "metrics"), ""}: http.StatusNotFound,
	} {
		got, body := askMetrics(t, request[0], request[1], request[2])
		if got != want || want == http.StatusOK && body != "imds_agent_pods 1\n" {
			t.Errorf("%s %.40s: %d, want %d: %s", request[0], request[1], got, want, body)
		}
	}

	for range 200 { // without a word
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if status, _ := askMetrics(t, "GET", url, ""); status != http.StatusOK {
		t.Errorf("beside connections that say nothing: %d", status)
	}
	began, before := time.Now(), told.Load()
	for range 100 {
		askMetrics(t, "GET", url, "")
	}
	if asked, most := told.Load()-before, int64(time.Since(began)/askEvery)+1; asked > most {
		t.Errorf("the agent was asked %d times in %s", asked, time.Since(began))
	}
}

// An agent that is away or hangs is an error, so that Prometheus takes no old figure
// for a new one, and so is one that tells more than it can have to tell.
func TestAgentMetricsWithoutTheAgent(t *testing.T) {
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for socket, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"):                                "no such file or directory",
		silent.Addr().String():                                            "i/o timeout",
		tellOn(t, strings.Repeat("x 1\n", scrapeBody), new(atomic.Int64)): "more than",
	} {
		url, _ := agentMetrics(t, socket)
		if status, body := askMetrics(t, "GET", url, ""); status != http.StatusServiceUnavailable || !strings.Contains(body, want) {
			t.Errorf("%d %.200s, want 503 and %s", status, body, want)
		}
	}
}
