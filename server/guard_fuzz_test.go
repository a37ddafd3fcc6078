package main

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/api"
	"github.com/example/kubevirt-imds/server/internal/conns"
	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/token"
	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// pipeListener accepts in-memory connections.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	conn, open := <-l
	if !open {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// Whatever bytes a guest sends, only what the guard lets through is answered with
// 200. What that is, the test reads from the bytes, and not from what net/http
// made of them.
func FuzzGuard(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254:80\r\nMetadata: true\r\n\r\n",
		"GET /v1/token HTTP/1.1\nHost: 169.254.169.254\nMetadata: True\n\n",
		"HEAD /v1/identity HTTP/1.0\r\n\r\n",
		"GET http://169.254.169.254/v1/token HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"GET http://user@evil.example/v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-For: 1\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nforwarded:\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Real-IP: \r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nOrigin: null\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nA: b\r\n Origin: folded\r\nSec-Fetch-Site: none\r\n\r\n",
		"POST /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET //v1/../v1/%74oken?audience=%zz HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254:080\r\nvia: 1.1 proxy\r\n\r\n",
		"GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\nTrue-Client-IP: 1\r\n\r\n",
		"GET /v1/token?aud=vault HTTP/1.1\r\nHost: fe80::a9fe:a9fe%eth0\r\n\r\n",
		"GET /v1/identity HTTP/1.1\r\nHost: [fe80:0:0:0:0:0:a9fe:a9fe%25eth0]:80\r\n\r\n",
		"GET /v1/identity HTTP/1.1\r\nHost: [::ffff:169.254.169.254]\r\n\r\n",
		"GET http://[fe80::a9fe:a9fe%25eth0]/v1/token HTTP/1.1\r\nHost: 169.254.169.254.\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
	} {
		f.Add([]byte(seed))
	}
	listen := []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80")}
	volume := tokentest.NewVolume(f, freshToken())
	quiet := slog.New(slog.DiscardHandler)
	listeners := make(map[bool]pipeListener) // by whether the header is required
	for _, requireHeader := range []bool{false, true} {
		handler := api.NewHandler(api.Settings{Listen: listen, RequireHeader: requireHeader},
			token.NewSource(volume.TokenPath(), time.Now, quiet), refusals.NewLog(quiet, time.Now))
		limit := conns.NewLimit(listen[0].Addr(), func(net.Addr, string) {})
		listeners[requireHeader] = make(pipeListener)
		go newHTTPServer(handler, limit).Serve(listeners[requireHeader])
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		for requireHeader, listener := range listeners {
			status := exchange(t, listener, request)
			if status == http.StatusInternalServerError {
				t.Errorf("a panic, or as bad: %q", request)
			}
			if reason := whyRefuse(string(request), requireHeader); status == http.StatusOK && reason != "" {
				t.Errorf("answered, with the header required: %v, although %s: %q", requireHeader, reason, request)
			}
		}
	})
}

// exchange sends a request, with an end in any case, and returns the status of
// the response, 0 if there is none.
func exchange(t *testing.T, listener pipeListener, request []byte) int {
	client, server := net.Pipe()
	defer client.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	listener <- server
	go client.Write(append(slices.Clip(request), "\r\n\r\n"...))
	method, _, _ := strings.Cut(string(request), " ")
	response, err := http.ReadResponse(bufio.NewReader(client), &http.Request{Method: method})
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Errorf("%q: the body of the answer: %v", request, err)
	}
	return response.StatusCode
}

var (
	forbiddenHeader = regexp.MustCompile(`(?i)^(via|forwarded|cdn-loop|forwarded-for|x-real-ip|x-rewrite-url|proxy-connection|x-forwarded.*|x-original-.*|.*client-ip|.*-connecting-ip|origin|sec-fetch-site)$`)
	ourHostIPv4     = regexp.MustCompile(`^169\.254\.169\.254(:0*80)?$`)
	// hostIPv6 has the groups of the address with and without brackets.
	hostIPv6 = regexp.MustCompile(`^(?:\[([0-9a-fA-F:.]+)(?:%[-.~\w]+)?\](?::0*80)?|([0-9a-fA-F:.]+)(?:%[-.~\w]+(?::0*80)?)?)$`)
)

func isOurHostIPv6(host string) bool {
	groups := hostIPv6.FindStringSubmatch(host)
	return groups != nil && strings.Contains(host, ":") && net.ParseIP(groups[1]+groups[2]).Equal(net.ParseIP("fe80::a9fe:a9fe"))
}

// whyRefuse reads from the bytes of a request why it must not be answered.
func whyRefuse(request string, requireHeader bool) string {
	head, _, _ := strings.Cut(strings.ReplaceAll(request, "\r\n", "\n"), "\n\n")
	lines := strings.Split(head, "\n")
	start := strings.SplitN(lines[0], " ", 3)
	if len(start) != 3 {
		return "it has no request line"
	}
	method, target, protocol := start[0], start[1], start[2]
	if method != "GET" && method != "HEAD" {
		return "the method is wrong"
	}
	var hosts, metadata []string
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if forbiddenHeader.MatchString(name) {
			return "it has the header " + name
		}
		switch strings.ToLower(name) {
		case "host":
			hosts = append(hosts, value)
		case "metadata":
			metadata = append(metadata, value)
		}
	}
	if _, rest, absolute := strings.Cut(target, "://"); absolute && !strings.HasPrefix(target, "/") {
		authority := rest
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			authority = rest[:end]
		}
		hosts = []string{authority[strings.LastIndex(authority, "@")+1:]}
	}
	switch {
	case len(hosts) == 0 || len(hosts) == 1 && hosts[0] == "":
		if protocol != "HTTP/1.0" {
			return "it has no host"
		}
	case len(hosts) > 1 || !ourHostIPv4.MatchString(hosts[0]) && !isOurHostIPv6(hosts[0]):
		return "the host is another"
	}
	_, query, _ := strings.Cut(target, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(parameter, "=")
		if decoded, err := url.QueryUnescape(name); parameter != "" && (err != nil || decoded != "audience") {
			return "it has a parameter that does not exist"
		}
	}
	if requireHeader && strings.Contains(target, "/v1/") && (len(metadata) != 1 || !strings.EqualFold(metadata[0], "true")) {
		return "the header is not there"
	}
	return ""
}
