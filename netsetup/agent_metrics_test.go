package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// metricsOf starts an agent with metrics, and returns where they are.
func metricsOf(t *testing.T, n *node) (url string) {
	t.Helper()
	// The tests of an ordinary user have a network of their own, in which it is down.
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	n.start(t, exec.Command(n.program, "agent"), "IMDS_METRICS_ADDRESS=127.0.0.1:0")
	return "http://" + regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(n.waitFor(t, "metrics served"))[1] + "/metrics"
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", response.Status, body)
	}
	return string(body)
}

// awaitMetric waits until there is a line.
func awaitMetric(t *testing.T, url, line string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text := scrape(t, url)
		if slices.Contains(strings.Split(text, "\n"), line) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("no line %s in\n%s", line, text)
		}
	}
}

// seriesOf are the names without their values, and without the version of the build.
func seriesOf(text string) string {
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`version="[^"]*"`).ReplaceAllString(text, `version=""`)
	return regexp.MustCompile(` \S+\n`).ReplaceAllString(text, "\n")
}

func TestMetricsOfTheAgent(t *testing.T) {
	n := newNode(t)
	url := metricsOf(t, n)
	before := scrape(t, url)
	pod := newAgentPod(t, n, "uid", podnet.Options{Binding: podnet.Bridge})
	awaitMetric(t, url, `imds_agent_pods{state="waiting",reason="guest"} 1`)
	awaitMetric(t, url, "imds_agent_connected_pods 1")
	pod.serveGuest(t)
	awaitMetric(t, url, `imds_agent_pods{state="wired",reason=""} 1`)
	awaitMetric(t, url, "imds_agent_repairs_total 0")
	pod.unplugEndpoint(t)
	awaitMetric(t, url, "imds_agent_repairs_total 1")

	n.addPod(t, "silent")
	awaitMetric(t, url, `imds_agent_pods{state="waiting",reason="server"} 1`)
	file := filepath.Join(n.addPod(t, "file"), "imds.sock")
	must(t, os.WriteFile(file+".new", nil, 0o600))
	must(t, os.Rename(file+".new", file))
	awaitMetric(t, url, `imds_agent_pods{state="failed",reason="socket"} 1`)
	speak(t, n.addPod(t, "stammers"), func(conn *net.UnixConn) error { return say(conn, "tenant's text", pod.Pod.Pod.FD()) })
	awaitMetric(t, url, `imds_agent_pods{state="failed",reason="message"} 1`)
	handOver(t, n.addPod(t, "twice"), pod.Pod.Pod)
	awaitMetric(t, url, `imds_agent_pods{state="failed",reason="namespace"} 1`)

	after := scrape(t, url)
	if seriesOf(before) != seriesOf(after) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// For the tests of alerts and pages.
	const golden = "testdata/metrics.txt"
	if *update {
		must(t, os.WriteFile(golden, []byte(seriesOf(after)), 0o644))
	}
	committed, err := os.ReadFile(golden)
	if err != nil || string(committed) != seriesOf(after) {
		t.Errorf("%s differs, %v: run the test with -update; want\n%s", golden, err, seriesOf(after))
	}
	if regexp.MustCompile(`imds_agent_reconcile_duration_seconds_count 0\n`).MatchString(after) {
		t.Errorf("no reconcile is counted:\n%s", after)
	}
	must(t, os.RemoveAll(filepath.Join(n.folder, pod.uid)))
	awaitMetric(t, url, `imds_agent_pods{state="wired",reason=""} 0`)
}

// Who asks otherwise, slowly or all the time gets nothing, and holds nothing up for long.
func TestServerOfMetricsIsBounded(t *testing.T) {
	n := newNode(t)
	url := metricsOf(t, n)
	status := func(method, url, header string) int {
		request, err := http.NewRequest(method, url, nil)
		must(t, err)
		request.Header.Set("X", header)
		response, err := http.DefaultClient.Do(request)
		must(t, err)
		response.Body.Close()
		return response.StatusCode
	}
	for request, want := range map[[3]string]int{
		{"GET", url, ""}:  http.StatusOK,
		{"POST", url, ""}: http.StatusMethodNotAllowed,
		{"GET", strings.TrimSuffix(url, "metrics"), ""}:    http.StatusNotFound,
		{"GET", url + "/x", ""}:                            http.StatusNotFound,
		{"GET", url, strings.Repeat("x", 4*scrapeHeader)}:  http.StatusRequestHeaderFieldsTooLarge,
		{"GET", url + "?debug=1", ""}:                      http.StatusOK,
		{"DELETE", strings.TrimSuffix(url, "metrics"), ""}: http.StatusNotFound,
	} {
		if got := status(request[0], request[1], request[2]); got != want {
			t.Errorf("%s %s: %d, want %d", request[0], request[1], got, want)
		}
	}

	address := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/metrics")
	var held []net.Conn
	for range 2 * scrapesAtOnce {
		conn, err := net.Dial("tcp", address)
		must(t, err)
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
	awaitMetric(t, url, "imds_agent_connected_pods 0")
}

// Without the variable no port is opened, and one that is taken holds up no VM.
func TestAgentOpensNoPortByItself(t *testing.T) {
	listening := func(n *node) bool {
		sockets, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.process.Process.Pid))
		must(t, err)
		var table []byte
		for _, protocol := range []string{"tcp", "tcp6"} {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.process.Process.Pid, protocol))
			must(t, err)
			table = append(table, content...)
		}
		for _, socket := range sockets {
			name, _ := os.Readlink(socket)
			inode, isSocket := strings.CutPrefix(name, "socket:[")
			if isSocket && strings.Contains(string(table), " "+strings.TrimSuffix(inode, "]")+" ") {
				return true
			}
		}
		return false
	}
	n := runningNode(t)
	if listening(n) {
		t.Error("the agent listens")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	other := newNode(t)
	other.start(t, exec.Command(other.program, "agent"), "IMDS_METRICS_ADDRESS="+taken.Addr().String())
	other.waitFor(t, "metrics not served")
	other.waitFor(t, "msg=starting")
	third := newNode(t)
	metricsOf(t, third)
	if !listening(third) {
		t.Error("this test does not see who listens")
	}
}

func TestLinesLeftOutAreCounted(t *testing.T) {
	counter := metrics.NewSet().NewCounter("lines")
	log := slog.New(slog.NewTextHandler(&boundedLog{to: io.Discard, lines: newAllowance(3, time.Hour, time.Now()), leftOut: counter}, nil))
	for range 10 {
		log.Info("line")
	}
	if counter.Get() != 7 {
		t.Errorf("%d lines", counter.Get())
	}
}
