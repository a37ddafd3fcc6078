package api

import (
	"net/http"
	"net/netip"
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
	"via, in small":                 {"GET PATH HTTP/1.1\r\nHost: HOST\r\nvia: 1.1 proxy\r\n\r\n", forwardedRequest, "proxy"},
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

// A request names http, or nothing.
func TestOtherSchemes(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	for _, url := range []string{"mailto:/v1/token", "https://HOST/v1/token", "ftp://HOST/v1/token"} {
		answer := server.send(t, "GET "+url+" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
		if answer.StatusCode != 403 {
			t.Errorf("%s: got status %d: %s", url, answer.StatusCode, answer.body)
		}
	}
}

// Headers that proxies add, each alone.
func TestProxyHeaders(t *testing.T) {
	for _, name := range []string{
		"Via", "Forwarded", "CDN-Loop", // RFC 9110, 7239, 8586
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", // Apache, Traefik, Envoy
		"X-Forwarded-Prefix", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded", "Forwarded-For",
		"X-Real-IP", "X-Original-URI", "X-Original-Forwarded-For", // nginx
		"X-Original-URL", "X-Original-Host", "X-Rewrite-URL", // IIS, Azure's Application Gateway
		"Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "Fastly-Client-IP", "X-Azure-ClientIP", "X_Forwarded_For", "CF-Connecting-IP", // load balancers, CDNs
		"Proxy-Connection", // the client's, to a proxy that passes it on
	} {
		r := &http.Request{Header: http.Header{}}
		r.Header.Set(name, "x")
		if p := (guard{}).checkForwarded(r); p == nil || p.kind != forwardedRequest || !strings.Contains(strings.ToLower(p.Detail), strings.ToLower(name)) {
			t.Errorf("%s: %+v, want it refused and named", name, p)
		}
	}
}

// Headers of clients that are near to those of proxies.
func TestNoProxyHeaders(t *testing.T) {
	r := &http.Request{Header: http.Header{}}
	for _, name := range []string{
		"Connection", "Keep-Alive", "TE", "Upgrade", "Cache-Control", "Pragma", "Authorization", "User-Agent", "Accept-Encoding",
		"X-Request-Id", "Traceparent", "Baggage", "X-B3-Traceid", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", // tracing
		"X-Ms-Client-Request-Id", "X-Client-SKU", "X-Client-Ver", "X-Goog-Api-Client", "Amz-Sdk-Request", "X-Aws-Ec2-Metadata-Token", // SDKs
	} {
		r.Header.Set(name, "x")
	}
	if p := (guard{}).checkForwarded(r); p != nil {
		t.Errorf("an honest client is refused: %+v", p)
	}
}

// A Host is an address and a port, in whatever way a client writes them. Names,
// and what some resolvers make an address of, are foreign.
func TestHosts(t *testing.T) {
	listen := []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80")}
	const others = "[fd00:ec2::254]:8080"
	tests := map[string][]string{
		"169.254.169.254:80": {
			"169.254.169.254", "169.254.169.254:80", "169.254.169.254:080",
		},
		"[fe80::a9fe:a9fe]:80": {
			"[fe80::a9fe:a9fe]", "[fe80::a9fe:a9fe]:80", "[FE80::A9FE:A9FE]",
			"[fe80::a9fe:a9fe%eth0]", "[fe80::a9fe:a9fe%25eth0]", "[FE80::A9FE:A9FE%25enp1s0.100]:80", "[fe80::a9fe:a9fe%4]", // Python's http.client
			"fe80::a9fe:a9fe%eth0", "fe80::a9fe:a9fe%25eth0", "fe80::a9fe:a9fe%4", "fe80::a9fe:a9fe%eth0:80", "fe80::a9fe:a9fe", // aiohttp 3.8
			"[fe80:0:0:0:0:0:a9fe:a9fe]", "[fe80:0:0:0:0:0:a9fe:a9fe]:80", "[fe80:0:0:0:0:0:a9fe:a9fe%eth0]", // Java
			"[fe80:0000:0000:0000:0000:0000:a9fe:a9fe]", "[fe80::0:a9fe:a9fe]", "[fe80::169.254.169.254]",
		},
		others: {others, "[FD00:EC2:0:0::254]:8080"},
		"": {
			"", " ", ":80", "[]", "[]:80", "[", "]", "%", "localhost", "evil.example", "evil.example:80", "metadata.google.internal",
			"169.254.169.254.evil.example", "evil.example.169.254.169.254", "169-254-169-254.evil.example", "169.254.169.254:80.evil.example",
			"169.254.169.254.", "169.254.169.254.:80", "2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376",
			"169.254.43518", "169.254.169.0254", "169.254.169.254%eth0", "[169.254.169.254]", "[169.254.169.254]:80", "169.254.169.254/",
			"169.254.169.254:8080", "169.254.169.254:0", "169.254.169.254:65616", "169.254.169.254:+80", "169.254.169.254:http", "169.254.169.254:80:80",
			"169.254.169.253", "127.0.0.1", "0.0.0.0",
			"[::ffff:169.254.169.254]", "::ffff:169.254.169.254", "[::ffff:a9fe:a9fe]:80", "[::169.254.169.254]", "[64:ff9b::169.254.169.254]",
			"[fe80::a9fe:a9fe]:8080", "[fe80::a9fe:a9fe%eth0]:8080", "fe80::a9fe:a9fe%eth0:8080", "fe80::a9fe:a9fe:80",
			"[fe80::a9fe:a9fe%]", "fe80::a9fe:a9fe%", "[fe80::a9fe:a9fe%eth0", "fe80::a9fe:a9fe]", "[[fe80::a9fe:a9fe]]", "[fe80::a9fe:a9fe]80",
			"[fe80::a9fe:a9fe%eth0].evil.example", "[fe80::a9fe:a9fe%eth0]evil.example", "[fe80::a9fe:a9fe%.evil.example/]",
			"[fe80::a9fe:a9fe%eth0%eth1]", "[fe80::a9fe:a9fe]%eth0", "[fe80::1%eth0]", "[fe80::.evil.example%eth0]", "fe80::a9fe:a9fe%a b",
			"[fd00:ec2::254]", "[fd00:ec2::254%eth0]:8080", "fd00:ec2::254:8080",
		},
	}
	g := guard{listen: append(listen, netip.MustParseAddrPort(others))}
	for ours, hosts := range tests {
		for _, host := range hosts {
			r := &http.Request{Method: http.MethodGet, Host: host, ProtoMajor: 1, ProtoMinor: 1}
			p := g.checkHost(r)
			if (p == nil) != (ours != "") {
				t.Errorf("host %q: %+v, want it to be ours: %t", host, p, ours != "")
			}
			if p != nil && !strings.HasSuffix(p.Detail, " is not this service; ask for http://169.254.169.254 or http://[fe80::a9fe:a9fe] or http://[fd00:ec2::254]:8080") {
				t.Errorf("host %q: the detail is %s", host, p.Detail)
			}
			if named, ok := parseHost(host); ours != "" && (!ok || named != netip.MustParseAddrPort(ours)) {
				t.Errorf("host %q names %s, want %s", host, named, ours)
			}
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
