package main

import (
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/container"
)

// scraper is where the metrics of an agent are.
type scraper struct{ *http.Client }

// metricsOf starts an agent with metrics, and what serves them, as its pod does.
func metricsOf(t *testing.T, n *node) scraper {
	t.Helper()
	network := nodeNetwork(t)
	lo, err := network.Netlink().LinkByName("lo")
	must(t, err)
	must(t, network.Netlink().LinkSetUp(lo))
	shared := filepath.Dir(n.status)
	must(t, os.Chmod(shared, 0o777)) // as the kubelet makes an emptyDir
	n.start(t, exec.Command(n.program, "agent"), "IMDS_METRICS_SOCKET="+shared+"/metrics.sock")
	n.waitFor(t, "msg=starting")
	folder, err := serverImage()
	must(t, err)
	startContainer(t, network, container.Spec{
		Name: "metrics", Image: folder, Command: []string{"/imds-server", "agent-metrics"},
		Mounts: []container.Mount{{Source: shared, Target: "/run/imds-node-agent", ReadOnly: true}},
		Env:    []string{"IMDS_METRICS_SOCKET=/run/imds-node-agent/metrics.sock", "IMDS_METRICS_ADDRESS=127.0.0.1:9438"},
		UID:    65532, GID: 65532,
	}).waitFor(t, "agent's metrics served")
	return scraper{network.HTTPClient()}
}

func (s scraper) scrape(t *testing.T) string {
	t.Helper()
	response, err := s.Get("http://127.0.0.1:9438/metrics")
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	return string(body)
}

// await waits until there is a line.
func (s scraper) await(t *testing.T, line string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text := s.scrape(t)
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
	agent := metricsOf(t, n)
	before := agent.scrape(t)
	pod := newAgentPod(t, n, "uid", podnet.Options{Binding: podnet.Bridge})
	agent.await(t, `imds_agent_pods{state="waiting",reason="guest"} 1`)
	agent.await(t, "imds_agent_connected_pods 1")
	pod.serveGuest(t)
	agent.await(t, `imds_agent_pods{state="wired",reason=""} 1`)
	agent.await(t, "imds_agent_repairs_total 0")
	pod.unplugEndpoint(t)
	agent.await(t, "imds_agent_repairs_total 1")

	n.addPod(t, "silent")
	agent.await(t, `imds_agent_pods{state="waiting",reason="server"} 1`)
	file := filepath.Join(n.addPod(t, "file"), "imds.sock")
	must(t, os.WriteFile(file+".new", nil, 0o600))
	must(t, os.Rename(file+".new", file))
	agent.await(t, `imds_agent_pods{state="failed",reason="socket"} 1`)
	speak(t, n.addPod(t, "stammers"), func(conn *net.UnixConn) error { return say(conn, "tenant's text", pod.Pod.Pod.FD()) })
	agent.await(t, `imds_agent_pods{state="failed",reason="message"} 1`)
	handOver(t, n.addPod(t, "twice"), pod.Pod.Pod)
	agent.await(t, `imds_agent_pods{state="failed",reason="namespace"} 1`)

	after := agent.scrape(t)
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
	agent.await(t, `imds_agent_pods{state="wired",reason=""} 0`)
}

// Neither a reader that is slow nor an agent that was killed keeps the next one from
// the metrics, and a socket that cannot be made holds up no VM.
func TestMetricsAreToldAgain(t *testing.T) {
	n := newNode(t)
	agent := metricsOf(t, n)
	for range 3 * 100 {
		conn, err := net.Dial("unix", filepath.Join(filepath.Dir(n.status), "metrics.sock"))
		must(t, err)
		defer conn.Close() // without a word
	}
	agent.await(t, "imds_agent_connected_pods 0")
	n.stopAgent(t, syscall.SIGKILL)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		response, err := agent.Get("http://127.0.0.1:9438/metrics")
		must(t, err)
		response.Body.Close()
		if response.StatusCode == http.StatusServiceUnavailable {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("without an agent: %s", response.Status)
		}
	}
	n.startAgent(t, "IMDS_METRICS_SOCKET="+filepath.Join(filepath.Dir(n.status), "metrics.sock"))
	agent.await(t, "imds_agent_connected_pods 0")

	other := newNode(t)
	other.start(t, exec.Command(other.program, "agent"), "IMDS_METRICS_SOCKET="+filepath.Join(other.folder, "none", "metrics.sock"))
	other.waitFor(t, "metrics not served")
	other.waitFor(t, "msg=starting")
}

// The agent, which may enter each pod, opens no port.
func TestAgentOpensNoPort(t *testing.T) {
	n := newNode(t)
	metricsOf(t, n)
	sockets, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.process.Process.Pid))
	must(t, err)
	held := 0
	for _, protocol := range []string{"unix", "tcp", "tcp6", "udp", "udp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.process.Process.Pid, protocol))
		must(t, err)
		for _, socket := range sockets {
			name, _ := os.Readlink(socket)
			inode, isSocket := strings.CutPrefix(name, "socket:[")
			if !isSocket || !strings.Contains(string(table), " "+strings.TrimSuffix(inode, "]")+" ") {
				continue
			} else if held++; protocol != "unix" {
				t.Errorf("the agent has a socket of %s", protocol)
			}
		}
	}
	if held == 0 {
		t.Error("this test does not see which sockets the agent has")
	}
}

func TestLinesLeftOutAreCounted(t *testing.T) {
	var counter atomic.Int64
	log := slog.New(slog.NewTextHandler(&boundedLog{to: io.Discard, lines: newAllowance(3, time.Hour, time.Now()), leftOut: &counter}, nil))
	for range 10 {
		log.Info("line")
	}
	if counter.Load() != 7 {
		t.Errorf("%d lines", counter.Load())
	}
}
