package api

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// BenchmarkToken compares /v1/token, over a kept connection, with a handler that
// answers a constant of the same size, and reports the ratio of their times.
func BenchmarkToken(b *testing.B) {
	api := newTestServer(b, map[string]string{"token": freshJWT(apiServer)}, false)
	constant := bytes.Repeat([]byte("x"), len(api.get(b, "/v1/token").body))
	reference := serveOn(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(constant) }))

	var perRequest [2]time.Duration
	for i, server := range []struct{ name, addr string }{{"constant", reference}, {"token", api.addr}} {
		b.Run(server.name, func(b *testing.B) {
			b.ReportAllocs()
			ask := newAsker(b, server.addr)
			for b.Loop() {
				ask()
			}
			perRequest[i] = b.Elapsed() / time.Duration(b.N)
			if i == 1 && perRequest[0] > 0 {
				b.ReportMetric(float64(perRequest[1])/float64(perRequest[0]), "times-constant")
			}
		})
	}
}

func serveOn(b *testing.B, handler http.Handler) string {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	b.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// newAsker returns a function that asks for /v1/token and reads the answer, at
// the least cost to the client.
func newAsker(b *testing.B, addr string) func() {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	reader := bufio.NewReader(conn)
	request := []byte("GET /v1/token HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n")
	return func() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		length := 0
		for {
			line, err := reader.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
			if value, found := strings.CutPrefix(string(line), "Content-Length: "); found {
				for _, digit := range strings.TrimSpace(value) {
					length = 10*length + int(digit-'0')
				}
			}
		}
		if n, err := io.CopyN(io.Discard, reader, int64(length)); err != nil || n == 0 {
			b.Fatalf("got %d bytes: %v", n, err)
		}
	}
}
