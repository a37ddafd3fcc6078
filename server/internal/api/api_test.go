package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/token"
	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// apiServer is the audience of the default token.
const apiServer = "https://kubernetes.default.svc.cluster.local"

var testIdentity = Identity{
	Namespace:          "tenant",
	ServiceAccountName: "default",
	VMName:             "fedora",
	PodName:            "virt-launcher-fedora-x7k2p",
	VMIUID:             "0b6f5a1e-6a0f-4b8e-9d6b-1f0e7d9c2a34",
	NodeName:           "node1",
}

// testServer is the API behind a real socket.
type testServer struct {
	addr   string
	volume *tokentest.Volume
	log    *syncBuffer
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// newTestServer serves the files on 127.0.0.1.
func newTestServer(t testing.TB, files map[string]string, requireHeader bool) *testServer {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{
		addr:   listener.Addr().String(),
		volume: tokentest.NewVolume(t, files),
		log:    new(syncBuffer),
	}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	handler := NewHandler(Settings{
		Listen:        []netip.AddrPort{netip.MustParseAddrPort(s.addr)},
		RequireHeader: requireHeader,
		Identity:      testIdentity,
	}, token.NewSource(s.volume.TokenPath(), inAnHour, log), refusals.NewLog(log, time.Now))
	server := &http.Server{Handler: handler, DisableGeneralOptionsHandler: true}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return s
}

// response is what came back for a request.
type response struct {
	*http.Response
	body string
	// closed tells that the server closed the connection after the answer.
	closed bool
}

// send sends a request as it is, with HOST in it replaced by the server's host
// and port, and reads one response.
func (s *testServer) send(t testing.TB, request string) response {
	t.Helper()
	conn, err := net.Dial("tcp4", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, strings.ReplaceAll(request, "HOST", s.addr)); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	reader := bufio.NewReader(conn)
	answer, err := http.ReadResponse(reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	r := response{Response: answer, body: string(body), closed: answer.Close}
	if r.closed {
		if n, err := reader.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%q: after the answer came %d bytes (error %v), want the end", request, n, err)
		}
	}
	return r
}

// get asks for a path with the headers that curl sends.
func (s *testServer) get(t testing.TB, path string, headers ...string) response {
	t.Helper()
	lines := append([]string{"GET " + path + " HTTP/1.1", "Host: HOST", "User-Agent: curl/8.14.1", "Accept: */*"}, headers...)
	return s.send(t, strings.Join(lines, "\r\n")+"\r\n\r\n")
}

// wantProblem checks that the response is a whole and correct problem document of
// this kind, and returns its detail.
func (r response) wantProblem(t testing.TB, want kind) string {
	t.Helper()
	if r.StatusCode != want.status {
		t.Fatalf("got status %d, want %d: %s", r.StatusCode, want.status, r.body)
	}
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("got content type %q, want that of a problem", got)
	}
	var document map[string]any
	if err := json.Unmarshal([]byte(r.body), &document); err != nil {
		t.Fatalf("the problem is not JSON: %v: %s", err, r.body)
	}
	detail, _ := document["detail"].(string)
	if detail == "" {
		t.Errorf("the problem has no detail: %s", r.body)
	}
	delete(document, "detail")
	wantMembers := map[string]any{
		"type":   "https://github.com/example/kubevirt-imds/blob/main/server/README.md#" + want.anchor,
		"title":  want.title,
		"status": float64(want.status),
	}
	for name, value := range wantMembers {
		if document[name] != value {
			t.Errorf("the problem has %s %v, want %v", name, document[name], value)
		}
	}
	if len(document) != len(wantMembers) {
		t.Errorf("the problem has other members: %s", r.body)
	}
	return detail
}

// inAnHour is the clock of the token files: by it they were not changed just now,
// so that an unchanged one need not be read again.
func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func freshJWT(audiences ...string) string {
	return tokentest.JWT(inAnHour().Add(time.Hour), audiences...)
}
