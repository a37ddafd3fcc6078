package probe

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet/netnstest"
)

// answer listens, reads the header of one request and answers it with response.
func answer(t *testing.T, response string) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request := make([]byte, 1000)
		n := 0
		for !strings.HasSuffix(string(request[:n]), "\r\n\r\n") {
			read, err := conn.Read(request[n:])
			if err != nil {
				t.Errorf("reading the request: %v", err)
				return
			}
			n += read
		}
		want := "GET /healthz HTTP/1.1\r\nHost: " + listener.Addr().String() + "\r\nConnection: close\r\n\r\n"
		if string(request[:n]) != want {
			t.Errorf("got the request %q, want %q", request[:n], want)
		}
		io.WriteString(conn, response)
		if response == "" {
			io.Copy(io.Discard, conn) // until the probe gives up
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return netip.MustParseAddrPort(listener.Addr().String())
}

func TestProbe(t *testing.T) {
	const problem = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: 48\r\n\r\n" +
		`{"status":503,"detail":"the token has expired"}` + "\n"
	tests := map[string]struct {
		response string
		healthy  string // part of the error, empty if there is none
		live     string
	}{
		"200":         {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", "", ""},
		"503":         {problem, "503 Service Unavailable\": the token has expired", ""},
		"500 as text": {"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno", `500 Oops": without a problem document`, ""},
		"not HTTP":    {"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no answer", "no answer"},
		"silence":     {"", "timeout", "timeout"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			wantError(t, check(t, answer(t, test.response), false), test.healthy)
			wantError(t, check(t, answer(t, test.response), true), test.live)
		})
	}
}

// at is a server that the guest finds where it listens, asked from its own
// address.
func at(addr netip.AddrPort) Server {
	return Server{Address: addr, Listens: addr, Host: addr, Source: addr.Addr()}
}

func check(t *testing.T, addr netip.AddrPort, live bool) error {
	return Check(t.Context(), at(addr), live)
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if part == "" {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got error %v, want one line with %q", err, part)
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(listener.Addr().String())
	listener.Close()
	wantError(t, check(t, addr, true), "connection refused")
}

// Where the guest is redirected and the redirection is missing, the server lives and the
// guest is not served.
func TestLivesWithoutTheRedirection(t *testing.T) {
	listening := answer(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
	server := at(listening)
	server.Address = netip.AddrPortFrom(listening.Addr(), 1)
	wantError(t, Check(t.Context(), server, false), "no answer from http://127.0.0.1:1/healthz")
	server.Host = listening
	wantError(t, Check(t.Context(), server, true), "")
}

// Without a route the address is out of reach of 127.0.0.1 as well.
func TestLivesWithoutItsAddress(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		address := netip.MustParseAddrPort("169.254.169.254:80")
		for _, source := range []string{"127.0.0.1", "169.254.169.254"} {
			server := Server{Address: address, Listens: address, Host: address, Source: netip.MustParseAddr(source)}
			wantError(t, Check(t.Context(), server, true), "")
			wantError(t, Check(t.Context(), server, false), "does not have the address 169.254.169.254 yet")
		}
	})
}

func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, Check(ctx, at(netip.MustParseAddrPort("127.0.0.1:1")), true), "canceled")
}

// Where the guest is redirected the server listens elsewhere than the guest asks,
// and the probe comes from another address than the guest.
func TestHostAndSourceAreThoseGiven(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan *http.Request, 1)
	answering := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r })}
	go answering.Serve(listener)
	defer answering.Close()
	server := Server{
		Address: netip.MustParseAddrPort(listener.Addr().String()),
		Listens: netip.MustParseAddrPort(listener.Addr().String()),
		Host:    netip.MustParseAddrPort("169.254.169.254:80"),
		Source:  netip.MustParseAddr("127.0.0.2"),
	}
	if err := Check(t.Context(), server, false); err != nil {
		t.Fatal(err)
	}
	r := <-requests
	if source, _, _ := net.SplitHostPort(r.RemoteAddr); r.Host != "169.254.169.254:80" || source != "127.0.0.2" {
		t.Errorf("got Host %q from %s", r.Host, source)
	}
}

// The Host of a link-local address has no zone (RFC 6874 section 1).
func TestHostWithoutZone(t *testing.T) {
	netnstest.Run(t, checkHostWithoutZone) // where lo has an IPv6 address
}

func checkHostWithoutZone(t *testing.T) {
	listener, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(listener.Addr().String())
	hosts := make(chan string, 1)
	answering := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host })}
	go answering.Serve(listener)
	defer answering.Close()
	server := at(addr)
	server.Address = netip.AddrPortFrom(addr.Addr().WithZone("lo"), addr.Port())
	server.Listens = server.Address
	if err := Check(t.Context(), server, false); err != nil {
		t.Fatal(err)
	}
	if host := <-hosts; host != addr.String() {
		t.Errorf("got Host %q, want %q", host, addr)
	}
}
