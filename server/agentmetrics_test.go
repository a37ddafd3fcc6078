package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
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

// tellOn is an agent that tells a text.
func tellOn(t *testing.T, text string) (socket string) {
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
	url, at := agentMetrics(t, tellOn(t, "imds_agent_pods 1\n"))
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

	var held []net.Conn
	for range 2 * scrapesAtOnce {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		held = append(held, conn)
	}
	// All end, the later ones at once.
	for i, conn := range slices.Backward(held) {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
			t.Errorf("connection %d is answered", i)
		} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Errorf("connection %d is not ended", i)
		}
	}
	if status, _ := askMetrics(t, "GET", url, ""); status != http.StatusOK {
		t.Errorf("after these: %d", status)
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
		filepath.Join(t.TempDir(), "none"):             "no such file or directory",
		silent.Addr().String():                         "i/o timeout",
		tellOn(t, strings.Repeat("x 1\n", scrapeBody)): "more than",
	} {
		url, _ := agentMetrics(t, socket)
		if status, body := askMetrics(t, "GET", url, ""); status != http.StatusServiceUnavailable || !strings.Contains(body, want) {
			t.Errorf("%d %.200s, want 503 and %s", status, body, want)
		}
	}
}
