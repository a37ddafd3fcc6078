package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// refusedAlways are requests that are refused on every path, with and without
// the header rule. PATH stands for the path.
var refusedAlways = map[string]struct {
	request string
	kind    kind
	remedy  string
}{
	"POST":                          {"POST PATH HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "use GET or HEAD"},
	"PUT, as for an AWS session":    {"PUT PATH HTTP/1.1\r\nHost: HOST\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n", methodNotAllowed, "GET"},
	"OPTIONS":                       {"OPTIONS PATH HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "GET"},
	"OPTIONS for the whole server":  {"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "GET"},
	"CONNECT":                       {"CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "GET"},
	"TRACE":                         {"TRACE PATH HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "GET"},
	"method in small letters":       {"get PATH HTTP/1.1\r\nHost: HOST\r\n\r\n", methodNotAllowed, "GET"},
	"X-Forwarded-For":               {"GET PATH HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n", forwardedRequest, "proxy"},
	"X-Forwarded-For, empty":        {"GET PATH HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For:\r\n\r\n", forwardedRequest, "proxy"},
	"x-forwarded-for, in small":     {"GET PATH HTTP/1.1\r\nHost: HOST\r\nx-forwarded-for: 203.0.113.7\r\n\r\n", forwardedRequest, "proxy"},
	"Forwarded":                     {"GET PATH HTTP/1.1\r\nHost: HOST\r\nForwarded: for=203.0.113.7\r\n\r\n", forwardedRequest, "proxy"},
	"X-Real-IP":                     {"GET PATH HTTP/1.1\r\nHost: HOST\r\nX-Real-IP: 203.0.113.7\r\n\r\n", forwardedRequest, "proxy"},
	"Host evil.example":             {"GET PATH HTTP/1.1\r\nHost: evil.example\r\n\r\n", foreignHost, "http://HOST"},
	"Host with another port":        {"GET PATH HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", foreignHost, "http://HOST"},
	"Host without the port":         {"GET PATH HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", foreignHost, "http://HOST"},
	"Host that begins with ours":    {"GET PATH HTTP/1.1\r\nHost: HOST.evil.example\r\n\r\n", foreignHost, "http://HOST"},
	"Host localhost":                {"GET PATH HTTP/1.1\r\nHost: localhost\r\n\r\n", foreignHost, "http://HOST"},
	"Host empty":                    {"GET PATH HTTP/1.1\r\nHost:\r\n\r\n", foreignHost, "http://HOST"},
	"Host evil.example in HTTP/1.0": {"GET PATH HTTP/1.0\r\nHost: evil.example\r\n\r\n", foreignHost, "http://HOST"},
	"foreign host in the URL":       {"GET http://evil.examplePATH HTTP/1.1\r\nHost: HOST\r\n\r\n", foreignHost, "http://HOST"},
	"Origin":                        {"GET PATH HTTP/1.1\r\nHost: HOST\r\nOrigin: http://evil.example\r\n\r\n", browserRequest, "curl"},
	"Origin null":                   {"GET PATH HTTP/1.1\r\nHost: HOST\r\nOrigin: null\r\n\r\n", browserRequest, "curl"},
	"Sec-Fetch-Site":                {"GET PATH HTTP/1.1\r\nHost: HOST\r\nSec-Fetch-Site: none\r\n\r\n", browserRequest, "curl"},

	"the method before the proxy":   {"POST PATH HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n", methodNotAllowed, "GET"},
	"the proxy before the host":     {"GET PATH HTTP/1.1\r\nHost: evil.example\r\nX-Real-IP: 203.0.113.7\r\n\r\n", forwardedRequest, "proxy"},
	"the host before the browser":   {"GET PATH HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n", foreignHost, "http://HOST"},
	"the browser before the header": {"GET PATH HTTP/1.1\r\nHost: HOST\r\nOrigin: http://evil.example\r\n\r\n", browserRequest, "curl"},
}

func TestRefusedOnEveryPath(t *testing.T) {
	jwt := freshJWT(apiServer)
	for _, requireHeader := range []bool{false, true} {
		server := newTestServer(t, map[string]string{"token": jwt}, requireHeader)
		for name, test := range refusedAlways {
			for _, path := range []string{"/healthz", "/v1/token", "/v1/identity", "/"} {
				t.Run(name+" "+path, func(t *testing.T) {
					answer := server.send(t, strings.ReplaceAll(test.request, "PATH", path))
					detail := answer.wantProblem(t, test.kind)
					if remedy := strings.ReplaceAll(test.remedy, "HOST", server.addr); !strings.Contains(detail, remedy) {
						t.Errorf("the detail says not %q: %s", remedy, detail)
					}
					wantCommonHeaders(t, answer)
					if allow := answer.Header.Get("Allow"); (allow == "GET, HEAD") != (test.kind == methodNotAllowed) {
						t.Errorf("got Allow %q", allow)
					}
				})
			}
		}
		if strings.Contains(server.log.String(), jwt[:20]) {
			t.Errorf("the token is in the log:\n%s", server.log)
		}
	}
}

func TestRefusalOfHEADHasNoBody(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	answer := server.send(t, "HEAD /v1/token HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
	if answer.StatusCode != 403 || answer.body != "" || answer.ContentLength <= 0 {
		t.Errorf("got status %d, length %d and body %q; want 403, the length of the problem, and no body", answer.StatusCode, answer.ContentLength, answer.body)
	}
}

// What honest clients send to http://ADDRESS:PORT/v1/token.
func TestHonestClientsAreServed(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	for name, request := range map[string]string{
		"curl":                     "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n",
		"Go":                       "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n",
		"cloud-init":               "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nUser-Agent: Cloud-Init/25.1\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
		"PowerShell":               "GET /v1/token HTTP/1.1\r\nUser-Agent: Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1\r\nHost: HOST\r\nConnection: Keep-Alive\r\n\r\n",
		"busybox wget":             "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nUser-Agent: Wget\r\nConnection: close\r\n\r\n",
		"HTTP/1.0 without Host":    "GET /v1/token HTTP/1.0\r\n\r\n",
		"HTTP/1.0 with Host":       "GET /v1/token HTTP/1.0\r\nHost: HOST\r\n\r\n",
		"the whole URL":            "GET http://HOST/v1/token HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"HEAD":                     "HEAD /v1/token HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"a header that nobody set": "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nMetadata-Flavor: Google\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if answer := server.send(t, request); answer.StatusCode != 200 {
				t.Errorf("got status %d: %s", answer.StatusCode, answer.body)
			}
		})
	}
}

func TestRequiredHeader(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, true)
	tests := map[string]struct {
		path    string
		headers []string
		refused bool
	}{
		"without":                 {"/v1/token", nil, true},
		"without, for identity":   {"/v1/identity", nil, true},
		"without, on no endpoint": {"/v1/unknown", nil, true},
		"false":                   {"/v1/token", []string{"Metadata: false"}, true},
		"empty":                   {"/v1/token", []string{"Metadata:"}, true},
		"a list":                  {"/v1/token", []string{"Metadata: true, true"}, true},
		"twice":                   {"/v1/token", []string{"Metadata: true", "Metadata: true"}, true},
		"another's":               {"/v1/token", []string{"Metadata-Flavor: Google"}, true},
		"true":                    {"/v1/token", []string{"Metadata: true"}, false},
		"True":                    {"/v1/token", []string{"Metadata: True"}, false},
		"in small letters":        {"/v1/identity", []string{"metadata: true"}, false},
		"health needs none":       {"/healthz", nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			answer := server.get(t, test.path, test.headers...)
			if !test.refused {
				if answer.StatusCode != 200 {
					t.Errorf("got status %d: %s", answer.StatusCode, answer.body)
				}
				return
			}
			if detail := answer.wantProblem(t, headerRequired); !strings.Contains(detail, `"Metadata: true"`) {
				t.Errorf("the detail names not the header: %s", detail)
			}
		})
	}
}

func TestHostsThatNameTheServer(t *testing.T) {
	tests := map[string][]string{
		"169.254.169.254:80":    {"169.254.169.254", "169.254.169.254:80"},
		"169.254.169.254:8080":  {"169.254.169.254:8080"},
		"[fd00:ec2::254]:80":    {"[fd00:ec2::254]", "[fd00:ec2::254]:80"},
		"[fe80::a9fe:a9fe]:443": {"[fe80::a9fe:a9fe]:443"},
	}
	for listen, want := range tests {
		t.Run(listen, func(t *testing.T) {
			if got := newGuard([]netip.AddrPort{netip.MustParseAddrPort(listen)}, false).hosts; !slices.Equal(got, want) {
				t.Errorf("got hosts %q, want %q", got, want)
			}
		})
	}
}

// The zone of a link-local address is the guest's business.
func TestZoneInHost(t *testing.T) {
	const ours = "[fe80::a9fe:a9fe]"
	g := newGuard([]netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80")}, false)
	for host, named := range map[string]bool{
		"169.254.169.254":                     true,
		"169.254.169.254:80":                  true,
		ours:                                  true,
		ours + ":80":                          true,
		"[FE80::A9FE:A9FE]":                   true,
		"[fe80::a9fe:a9fe%eth0]":              true,
		"[fe80::a9fe:a9fe%25eth0]":            true,
		"[FE80::A9FE:A9FE%25enp1s0.100]:80":   true,
		"[fe80::a9fe:a9fe%4]":                 true,
		"fe80::a9fe:a9fe":                     false,
		ours + ":8080":                        false,
		"[fe80::a9fe:a9fe%eth0]:8080":         false,
		"[fe80::a9fe:a9fe%]":                  false,
		"[fe80::a9fe:a9fe%eth0":               false,
		"[fe80::a9fe:a9fe%eth0].evil.example": false,
		"[fe80::a9fe:a9fe%eth0]evil.example":  false,
		"[fe80::a9fe:a9fe%.evil.example/]":    false,
		"[fe80::1%eth0]":                      false,
		"169.254.169.254%eth0":                false,
		"[::ffff:169.254.169.254]":            false,
		"fe80::a9fe:a9fe%eth0.evil.example":   false,
		"[fe80::.evil.example%eth0]":          false,
	} {
		r := &http.Request{Method: http.MethodGet, Host: host, ProtoMajor: 1, ProtoMinor: 1}
		if p := g.checkHost(r); (p == nil) != named {
			t.Errorf("host %q: %+v, want it to be ours: %t", host, p, named)
		}
	}
}

// Whatever a request brings, its refusal stays small and is escaped.
func TestEchoIsCutAndEscaped(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	long := strings.Repeat("<x>", 1000)
	for name, request := range map[string]string{
		"method":   strings.Repeat("X", 3000) + " / HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"host":     "GET / HTTP/1.1\r\nHost: " + strings.Repeat("x", 3000) + "\r\n\r\n",
		"path":     "GET /" + long + " HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"audience": "GET /v1/token?audience=" + long + " HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"query":    "GET /v1/token?%zz" + long + " HTTP/1.1\r\nHost: HOST\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			answer := server.send(t, request)
			if answer.StatusCode < 400 || len(answer.body) > 1000 || strings.Contains(answer.body, "<x>") {
				t.Errorf("got status %d with %d bytes: %s", answer.StatusCode, len(answer.body), answer.body)
			}
		})
	}
	if log := server.log.String(); strings.Contains(log, "<x>") || strings.Contains(log, "xxx") {
		t.Errorf("what the guest wrote is in the log:\n%s", log)
	}
}
