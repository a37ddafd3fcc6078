package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/tokentest"
	"github.com/example/kubevirt-imds/tools/podnet/seccomp"
)

// beMain makes the test binary be imds-server.
const beMain = "IMDS_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		seccomp.BecomeFiltered()
		tellHoldings()
		main()
	}
	os.Exit(m.Run())
}

// guests counts the connections of guests.
var guests atomic.Uint32

// guestDialer connects as the guest: from another address than 127.0.0.1, which
// would be the pod's probe. Each has an address of its own, or a flood would use
// up the ports of one.
func guestDialer() *net.Dialer {
	n := guests.Add(1)
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+n>>16%32), byte(n>>8), byte(n))}}
}

// ports counts the servers of this process: each has its own port.
var ports atomic.Uint32

// freeAddress returns a loopback address that no other process uses: it is made
// of the process's number.
func freeAddress() netip.AddrPort {
	pid := os.Getpid()
	ip := netip.AddrFrom4([4]byte{127, byte(64 + pid>>16), byte(pid >> 8), byte(pid)})
	return netip.AddrPortFrom(ip, uint16(8000+ports.Add(1)))
}

// environment returns what the sidecar's patch sets, for an address and a token.
func environment(addr netip.AddrPort, tokenPath string) map[string]string {
	return map[string]string{
		"IMDS_TOKEN_PATH":    tokenPath,
		"IMDS_NAMESPACE":     "tenant",
		"IMDS_POD_NAME":      "virt-launcher-fedora-x7k2p",
		"IMDS_VM_NAME":       "fedora",
		"IMDS_SA_NAME":       "default",
		"IMDS_LISTEN_ADDR":   addr.String(),
		"IMDS_LISTEN_DEVICE": "",
	}
}

// program returns a command that is imds-server with these arguments, in this
// environment and no other.
func program(variables map[string]string, args ...string) *exec.Cmd {
	// Another user may not look into the folder of the test binary, but may follow
	// this link.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = []string{beMain + "=1", "GORACE=atexit_sleep_ms=0"}
	cmd.Env = append(cmd.Env, seccomp.Inherited()...)
	for name, value := range variables {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// server is a running imds-server.
type server struct {
	*exec.Cmd
	addr netip.AddrPort
	log  *logLines
}

// startServer starts imds-server and waits until it listens.
func startServer(t *testing.T, files map[string]string) *server {
	t.Helper()
	addr := freeAddress()
	volume := tokentest.NewVolume(t, files)
	s := start(t, program(environment(addr, volume.TokenPath()), "serve"), addr)
	s.log.wait(t, "msg=listening")
	return s
}

func start(t *testing.T, cmd *exec.Cmd, addr netip.AddrPort) *server {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &server{Cmd: cmd, addr: addr, log: readLog(stderr)}
}

// stop ends the server by SIGTERM, and returns its whole log.
func (s *server) stop(t *testing.T) []string {
	t.Helper()
	s.signal(t, syscall.SIGTERM)
	return s.wantExit(t)
}

func (s *server) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := s.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// wantExit waits until the server has ended, with status 0, and returns its
// whole log.
func (s *server) wantExit(t *testing.T) []string {
	t.Helper()
	lines := s.log.all()
	if err := s.Wait(); err != nil {
		t.Errorf("imds-server: %v; its log:\n%s", err, strings.Join(lines, "\n"))
	}
	return lines
}

// logLines collects the lines of a log.
type logLines struct {
	mu      sync.Mutex
	changed sync.Cond
	lines   []string
	waited  int // lines that were looked at
	ended   bool
}

func readLog(stderr io.Reader) *logLines {
	l := &logLines{}
	l.changed.L = &l.mu
	go func() {
		scanner := bufio.NewScanner(stderr)
		for scanner.Scan() {
			l.mu.Lock()
			l.lines = append(l.lines, scanner.Text())
			l.changed.Broadcast()
			l.mu.Unlock()
		}
		l.mu.Lock()
		l.ended = true
		l.changed.Broadcast()
		l.mu.Unlock()
	}()
	return l
}

// wait waits for a line with part in it, after the line that was waited for
// before.
func (l *logLines) wait(t *testing.T, part string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.waited < len(l.lines) {
			line := l.lines[l.waited]
			l.waited++
			if strings.Contains(line, part) {
				return
			}
		}
		if l.ended {
			t.Fatalf("the log ended without %q:\n%s", part, strings.Join(l.lines, "\n"))
		}
		l.changed.Wait()
	}
}

// all waits for the end of the log, and returns it.
func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.ended {
		l.changed.Wait()
	}
	return l.lines
}

// guest is a connection of the guest.
type guest struct {
	net.Conn
	reader *bufio.Reader
}

// dial connects as the guest.
func (s *server) dial() (*guest, error) {
	conn, err := guestDialer().Dial("tcp4", s.addr.String())
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &guest{Conn: conn, reader: bufio.NewReader(conn)}, nil
}

// ask sends a request and returns the status and the body.
func (g *guest) ask(path string, headers ...string) (int, string, error) {
	request := "GET " + path + " HTTP/1.1\r\n" + strings.Join(append(headers, ""), "\r\n")
	if !strings.Contains(request, "\nHost: ") {
		request += "Host: " + g.RemoteAddr().String() + "\r\n"
	}
	if _, err := io.WriteString(g, request+"\r\n"); err != nil {
		return 0, "", err
	}
	response, err := http.ReadResponse(g.reader, nil)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// wantAnswer asks on a connection of its own.
func (s *server) wantAnswer(t *testing.T, path string, status int) string {
	t.Helper()
	g, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	got, body, err := g.ask(path)
	if err != nil || got != status {
		t.Fatalf("%s: got status %d (error %v), want %d: %s", path, got, err, status, body)
	}
	return body
}

// wantProbe probes as the kubelet does, in a process of its own.
func (s *server) wantProbe(t *testing.T) {
	t.Helper()
	if output, err := program(environment(s.addr, ""), "probe").CombinedOutput(); err != nil {
		t.Errorf("probe: %v: %s", err, output)
	}
}

func freshToken() map[string]string {
	return map[string]string{"token": tokentest.JWT(time.Now().Add(time.Hour), "https://kubernetes.default.svc.cluster.local")}
}

func TestServesUntilItIsTold(t *testing.T) {
	files := freshToken()
	s := startServer(t, files)
	if body := s.wantAnswer(t, "/v1/token", 200); !strings.Contains(body, files["token"]) {
		t.Errorf("got %s, want the token", body)
	}
	if body := s.wantAnswer(t, "/v1/identity", 200); !strings.Contains(body, `"vmName":"fedora"`) {
		t.Errorf("got %s, want the identity", body)
	}
	log := s.stop(t)
	want := []string{"msg=starting", `msg="token available"`, "msg=listening", "msg=draining", "msg=stopped"}
	if len(log) != len(want) {
		t.Fatalf("got %d lines of log, want %d:\n%s", len(log), len(want), strings.Join(log, "\n"))
	}
	for i, part := range want {
		if !strings.Contains(log[i], part) {
			t.Errorf("line %d of the log is %q, want %q", i+1, log[i], part)
		}
	}
}

func TestProbe(t *testing.T) {
	s := startServer(t, freshToken())
	variables := environment(s.addr, "")
	for _, args := range [][]string{{"probe"}, {"probe", "-live"}} {
		if output, err := program(variables, args...).CombinedOutput(); err != nil || len(output) != 0 {
			t.Errorf("%q: %v: %s", args, err, output)
		}
	}
	s.stop(t)
	for _, args := range [][]string{{"probe"}, {"probe", "-live"}} {
		output, err := program(variables, args...).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(string(output), "connection refused") {
			t.Errorf("%q of a server that is gone: %v: %s", args, err, output)
		}
	}
}

// A restart would not bring the token, so the livenessProbe must not ask for it.
func TestTokenFileMissing(t *testing.T) {
	s := startServer(t, nil)
	variables := environment(s.addr, "")
	output, err := program(variables, "probe").CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(string(output), "no such file or directory") {
		t.Errorf("probe: %v: %s; want status 1 and the reason", err, output)
	}
	if output, err := program(variables, "probe", "-live").CombinedOutput(); err != nil {
		t.Errorf("probe -live: %v: %s", err, output)
	}
	s.wantAnswer(t, "/healthz", 503)
	if log := strings.Join(s.stop(t), "\n"); strings.Count(log, `msg="token unavailable"`) != 1 {
		t.Errorf("want one line that the token is unavailable:\n%s", log)
	}
}

// flood asks as fast as the guest can, with more clients than there may be
// connections, until the test ends. Each answer is a value of the channel, if
// somebody waits for it.
func flood(t *testing.T, ask func() error) <-chan struct{} {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	answers := make(chan struct{})
	for range 160 {
		group.Go(func() {
			for ctx.Err() == nil {
				if ask() == nil {
					select {
					case answers <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return answers
}

func TestFloodByTheGuestKeepsTheProbeGreen(t *testing.T) {
	floods := map[string]func(s *server) func() error{
		"of requests": func(s *server) func() error {
			var idle sync.Pool // of connections
			return func() error {
				g, _ := idle.Get().(*guest)
				if g == nil {
					var err error
					if g, err = s.dial(); err != nil {
						return err
					}
				}
				_, _, err := g.ask("/v1/token")
				if err == nil {
					idle.Put(g)
				}
				return err
			}
		},
		"of connections": func(s *server) func() error {
			return func() error {
				g, err := s.dial()
				if err != nil {
					return err
				}
				defer g.Close()
				_, _, err = g.ask("/healthz")
				return err
			}
		},
		"of refused requests": func(s *server) func() error {
			return func() error {
				g, err := s.dial()
				if err != nil {
					return err
				}
				defer g.Close()
				_, _, err = g.ask("/v1/token", "Host: evil.example", "Content-Length: 10")
				return err
			}
		},
	}
	for name, ask := range floods {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, freshToken())
			answers := flood(t, ask(s))
			for range 20 {
				for range 5 {
					<-answers
				}
				s.wantProbe(t)
			}
		})
	}
}

// The header of their requests never ends.
func TestThousandSlowClients(t *testing.T) {
	s := startServer(t, freshToken())
	var slow []*guest
	for range 1000 {
		g, err := s.dial()
		if errors.Is(err, syscall.ECONNRESET) {
			continue // the server was faster
		}
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		io.WriteString(g, "GET /v1/token HTTP/1.1\r\nX-Slow: ")
		slow = append(slow, g)
	}
	for range 20 {
		s.wantProbe(t)
	}
	s.wantAnswer(t, "/v1/token", 200)
	for _, g := range slow {
		g.Close()
	}
	if lines := s.stop(t); len(lines) > 6 {
		t.Errorf("they wrote %d lines of log:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

func TestRefusedRequestsDoNotFillTheLog(t *testing.T) {
	files := freshToken()
	s := startServer(t, files)
	g, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	refused := map[string][]string{
		"foreign-host":      {"/v1/token", "Host: evil.example"},
		"forwarded-request": {"/v1/token", "X-Forwarded-For: 203.0.113.7"},
		"browser-request":   {"/v1/token", "Origin: http://evil.example"},
		"not-found":         {"/" + files["token"]},
		"unknown-audience":  {"/v1/token?audience=" + files["token"]},
		"invalid-query":     {"/v1/token?audience=" + files["token"] + ";"},
	}
	for range 500 {
		for kind, request := range refused {
			if status, _, err := g.ask(request[0], request[1:]...); err != nil || status < 400 {
				t.Fatalf("%s: status %d (error %v)", kind, status, err)
			}
		}
	}
	log := strings.Join(s.stop(t), "\n")
	for kind := range refused {
		if n := strings.Count(log, "kind="+kind+" "); n < 1 || n > 3 { // more if it took minutes
			t.Errorf("500 requests of the kind %s wrote %d lines", kind, n)
		}
	}
	if strings.Contains(log, files["token"][:20]) || strings.Contains(log, "evil") {
		t.Errorf("what the guest wrote is in the log:\n%s", log)
	}
}

// net/http would answer it by itself.
func TestOptionsForTheWholeServer(t *testing.T) {
	s := startServer(t, freshToken())
	g, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fmt.Fprintf(g, "OPTIONS * HTTP/1.1\r\nHost: %s\r\n\r\n", s.addr)
	response, err := http.ReadResponse(g.reader, nil)
	if err != nil || response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %+v (error %v), want status 405", response, err)
	}
}

// askAndStall has the server send an answer that no buffer holds, and reads the
// first byte only: the request is in flight.
func (s *server) askAndStall(t *testing.T) *guest {
	t.Helper()
	dialer := guestDialer()
	dialer.Control = func(_, _ string, conn syscall.RawConn) error {
		return conn.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
	}
	conn, err := dialer.Dial("tcp4", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "GET /v1/token HTTP/1.1\r\nHost: %s\r\nAccept: application/jwt\r\n\r\n", s.addr)
	g := &guest{Conn: conn, reader: bufio.NewReaderSize(conn, 16)}
	if _, err := g.reader.Peek(1); err != nil {
		t.Fatal(err)
	}
	return g
}

func largeToken() map[string]string {
	payload := fmt.Sprintf(`{"aud":"a","exp":%d}`, time.Now().Add(time.Hour).Unix())
	return map[string]string{"token": tokentest.Encode("{}", payload, strings.Repeat("signature", 5000))}
}

func TestStopFinishesTheRequestInFlight(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			files := largeToken()
			s := startServer(t, files)
			g := s.askAndStall(t)
			s.signal(t, signal)
			s.log.wait(t, "msg=draining")
			if _, err := s.dial(); err == nil {
				t.Error("a new connection was accepted")
			}
			response, err := http.ReadResponse(g.reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil || string(body) != files["token"] {
				t.Errorf("got %d bytes (error %v), want the %d of the token", len(body), err, len(files["token"]))
			}
			if log := s.wantExit(t); !strings.Contains(log[len(log)-1], "msg=stopped") {
				t.Errorf("the log ends with %q", log[len(log)-1])
			}
		})
	}
}

func TestSecondSignalEndsItAtOnce(t *testing.T) {
	s := startServer(t, largeToken())
	s.askAndStall(t)
	s.signal(t, syscall.SIGTERM)
	s.log.wait(t, "msg=draining")
	s.signal(t, syscall.SIGTERM)
	log := s.log.all()
	err := s.Wait()
	status, ok := s.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("got %v, want that the signal ended it", err)
	}
	if last := log[len(log)-1]; !strings.Contains(last, "msg=draining") {
		t.Errorf("the log ends with %q, want that it was still draining", last)
	}
}

func TestServerLeavesNoCore(t *testing.T) {
	s := startServer(t, freshToken())
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, found := strings.CutPrefix(line, "Max core file size"); found {
			if fields := strings.Fields(rest); fields[0] != "0" || fields[1] != "0" {
				t.Errorf("got core file limits %q, want 0", fields)
			}
			s.stop(t)
			return
		}
	}
	t.Errorf("no core file limit in %s", limits)
}

func TestWrongEnvironmentStopsTheStart(t *testing.T) {
	variables := environment(freeAddress(), "")
	maps.Copy(variables, map[string]string{"IMDS_HOP_LIMIT": "300", "IMDS_REQUIRE_HEADER": "maybe"})
	output, err := program(variables).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit status 1", err)
	}
	for _, want := range []string{"imds-server: ", `IMDS_HOP_LIMIT="300"`, `IMDS_REQUIRE_HEADER="maybe"`} {
		if !strings.Contains(string(output), want) {
			t.Errorf("%q is not in the output: %s", want, output)
		}
	}
}

func TestPortInUseStopsTheServer(t *testing.T) {
	s := startServer(t, freshToken())
	output, err := program(environment(s.addr, "")).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(string(output), "address already in use") {
		t.Errorf("got %v, want exit status 1 and the reason: %s", err, output)
	}
	s.stop(t)
}
