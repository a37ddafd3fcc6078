package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// wantCommonHeaders checks what every answer has.
func wantCommonHeaders(t *testing.T, answer response) {
	t.Helper()
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if got := answer.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
	if answer.Request.Method != http.MethodHead && answer.ContentLength != int64(len(answer.body)) {
		t.Errorf("got Content-Length %d for %d bytes", answer.ContentLength, len(answer.body))
	}
}

func wantAnswer(t *testing.T, answer response, contentType, body string) {
	t.Helper()
	if answer.StatusCode != 200 || answer.body != body {
		t.Errorf("got status %d with %q, want 200 with %q", answer.StatusCode, answer.body, body)
	}
	if got := answer.Header.Get("Content-Type"); got != contentType {
		t.Errorf("got content type %q, want %q", got, contentType)
	}
	wantCommonHeaders(t, answer)
}

func TestHealthy(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	wantAnswer(t, server.get(t, "/healthz"), "text/plain", "OK")
}

func TestToken(t *testing.T) {
	expires := inAnHour().Add(time.Hour).Truncate(time.Second).UTC()
	jwt := tokentest.JWT(expires, apiServer)
	server := newTestServer(t, map[string]string{"token": jwt}, false)
	document := fmt.Sprintf("{\"token\":%q,\"expirationTimestamp\":%q}\n", jwt, expires.Format(time.RFC3339))
	wantAnswer(t, server.get(t, "/v1/token"), "application/json", document)
	wantAnswer(t, server.get(t, "/v1/token?"), "application/json", document)
	wantAnswer(t, server.send(t, "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nAccept: application/jwt\r\n\r\n"), "application/jwt", jwt)
	wantAnswer(t, server.send(t, "GET /v1/token HTTP/1.1\r\nHost: HOST\r\nAccept: text/plain\r\n\r\n"), "text/plain", jwt)
}

func TestTokenForAnAudience(t *testing.T) {
	primary, vault, url := freshJWT(apiServer), freshJWT("vault"), freshJWT("https://iam.example/a?b=c&d=e f+g")
	server := newTestServer(t, map[string]string{"token": primary, "audiences/0": vault, "audiences/1": url}, false)
	for query, want := range map[string]string{
		"audience=vault":   vault,
		"&audience=vault&": vault,
		"%61udience=vault": vault,
		"audience=https%3A%2F%2Fiam.example%2Fa%3Fb%3Dc%26d%3De+f%2Bg": url,
		"audience=" + apiServer: primary,
	} {
		answer := server.get(t, "/v1/token?"+query, "Accept: application/jwt")
		wantAnswer(t, answer, "application/jwt", want)
	}
}

func TestUnknownAudienceNamesTheKnownOnes(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": freshJWT("vault")}, false)
	detail := server.get(t, "/v1/token?audience=volt").wantProblem(t, unknownAudience)
	for _, want := range []string{`"volt"`, `"` + apiServer + `"`, `"vault"`, "imds.kubevirt.io/token-audiences"} {
		if !strings.Contains(detail, want) {
			t.Errorf("the detail names not %s: %s", want, detail)
		}
	}
}

func TestListOfAudiencesIsBounded(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = strings.Repeat("a", 300)
	}
	if list := listAudiences(many); len(list) > 16*107+5 || !strings.HasSuffix(list, ", ...") {
		t.Errorf("the list has %d bytes: %s", len(list), list)
	}
}

func TestInvalidQuery(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": freshJWT("vault")}, false)
	for query, remedy := range map[string]string{
		"audience=":                      "name one",
		"audience":                       "name one",
		"audience=vault&audience=vault":  "one audience at a time",
		"audience=vault&audience=":       "one audience at a time",
		"audience=vault;x":               "--data-urlencode",
		"audience=%zz":                   "--data-urlencode",
		"%61udience=vault&audience=":     "one audience at a time",
		"x;audience=vault":               "--data-urlencode",
		"audience=vault%3Bx&audience=%2": "--data-urlencode",
	} {
		t.Run(query, func(t *testing.T) {
			if detail := server.get(t, "/v1/token?"+query).wantProblem(t, invalidQuery); !strings.Contains(detail, remedy) {
				t.Errorf("the detail says not %q: %s", remedy, detail)
			}
		})
	}
}

// Whoever writes audience in another way must not get the token of the API server.
func TestUnknownParameters(t *testing.T) {
	jwt := freshJWT(apiServer)
	server := newTestServer(t, map[string]string{"token": jwt, "audiences/0": freshJWT("vault")}, false)
	for query, name := range map[string]string{
		"aud=vault":                        `"aud"`,
		"Audience=vault":                   `"Audience"`,
		"audience%20=vault":                `"audience "`,
		"audience[]=vault":                 `"audience[]"`,
		"resource=https://vault.example":   `"resource"`,
		"audience=vault&expiration=60":     `"expiration"`,
		"audience=vault&Audience=other":    `"Audience"`,
		"b=1&a=2":                          `"a"`,
		"vault":                            `"vault"`,
		"=vault":                           `""`,
		strings.Repeat("x", 1000) + "=1":   `"` + strings.Repeat("x", 100) + `"...`,
		"%3Cscript%3E%0A=" + "1":           `"<script>\n"`,
		"api-version=2018-02-01&audience=": `"api-version"`,
	} {
		for path, remedy := range map[string]string{
			"/v1/token":    "/v1/token?audience=A",
			"/v1/identity": "leave it out",
			"/healthz":     "leave it out",
		} {
			t.Run(path+"?"+query[:min(len(query), 40)], func(t *testing.T) {
				answer := server.get(t, path+"?"+query)
				detail := answer.wantProblem(t, invalidQuery)
				if path == "/v1/token" && !strings.Contains(detail, "there is no parameter "+name+";") {
					t.Errorf("the detail names not the parameter %s: %s", name, detail)
				}
				if !strings.Contains(detail, remedy) {
					t.Errorf("the detail says not %q: %s", remedy, detail)
				}
				if len(answer.body) > 600 || strings.Contains(answer.body, jwt[:20]) {
					t.Errorf("the answer is too long, or has a token: %s", answer.body)
				}
			})
		}
	}
	server.get(t, "/healthz?audience=vault").wantProblem(t, invalidQuery)
	server.get(t, "/v1/identity?%zz").wantProblem(t, invalidQuery)
}

// What makes the SDKs of Azure go on at once, see azureIdentity. tools/e2e/sdk
// shows that it does.
func TestAzureIsUnreachable(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, true)
	for _, request := range []string{
		"/metadata/identity/oauth2/token",
		"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net",
		"/metadata/identity/info?api-version=2018-02-01",
	} {
		if detail := server.get(t, request).wantProblem(t, otherCloud); !strings.Contains(detail, "unreachable") {
			t.Errorf("%s: the detail says not that Azure is unreachable: %s", request, detail)
		}
	}
	for _, request := range []string{"/metadata/instance?api-version=2021-02-01", "/metadata/identity", "/metadata", "/x/metadata/identity/"} {
		server.get(t, request).wantProblem(t, notFound)
	}
}

func TestIdentity(t *testing.T) {
	server := newTestServer(t, nil, false)
	answer := server.get(t, "/v1/identity")
	wantAnswer(t, answer, "application/json", `{"namespace":"tenant","serviceAccountName":"default","vmName":"fedora",`+
		`"podName":"virt-launcher-fedora-x7k2p","vmiUID":"0b6f5a1e-6a0f-4b8e-9d6b-1f0e7d9c2a34","nodeName":"node1"}`+"\n")
}

func TestIdentityLeavesOutWhatIsNotKnown(t *testing.T) {
	known := testIdentity
	known.VMIUID, known.NodeName = "", ""
	var got map[string]string
	if err := json.Unmarshal(marshalLine(known), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"namespace": "tenant", "serviceAccountName": "default", "vmName": "fedora", "podName": "virt-launcher-fedora-x7k2p",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Only the exact path is an endpoint: nothing is cleaned, decoded or redirected.
func TestUnknownPaths(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	for _, path := range []string{
		"/", "/v1", "/v1/", "/v1/token/", "//v1/token", "/v1//token", "/v1/./token", "/x/../v1/token", "/V1/token",
		"/v1/%74oken", "/v1%2ftoken", "/v1/token%00", "/v1/token.", "/healthz/", "/latest/meta-data/", "/openstack",
	} {
		t.Run(path, func(t *testing.T) {
			answer := server.get(t, path)
			detail := answer.wantProblem(t, notFound)
			for _, endpoint := range []string{"/healthz", "/v1/token", "/v1/identity"} {
				if !strings.Contains(detail, endpoint) {
					t.Errorf("the detail names not %s: %s", endpoint, detail)
				}
			}
			wantCommonHeaders(t, answer)
		})
	}
}

func TestTokenFileMissingFailsHealth(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	server.volume.Swap(t, nil)
	for _, path := range []string{"/healthz", "/v1/token", "/v1/token?audience=vault"} {
		answer := server.get(t, path)
		if detail := answer.wantProblem(t, tokenUnavailable); !strings.Contains(detail, "no such file") {
			t.Errorf("%s: the detail gives not the reason: %s", path, detail)
		}
		if answer.Header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", path)
		}
	}
	if answer := server.get(t, "/v1/identity"); answer.StatusCode != 200 {
		t.Errorf("the identity depends on the token: status %d", answer.StatusCode)
	}
	if log := server.log.String(); strings.Contains(log, "refused") || strings.Count(log, `msg="token unavailable"`) != 1 {
		t.Errorf("want one line in the log, that the token is unavailable:\n%s", log)
	}
}

func TestExpiredTokenFailsHealth(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": tokentest.JWT(time.Now().Add(-time.Minute), apiServer)}, false)
	for _, path := range []string{"/healthz", "/v1/token", "/v1/token?audience=" + apiServer} {
		if detail := server.get(t, path).wantProblem(t, tokenUnavailable); !strings.Contains(detail, "expired at") {
			t.Errorf("%s: the detail gives not the reason: %s", path, detail)
		}
	}
}

func TestHEADHasTheHeadersOfGET(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	for _, path := range []string{"/healthz", "/v1/token", "/v1/identity", "/unknown"} {
		get := server.send(t, "GET "+path+" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
		head := server.send(t, "HEAD "+path+" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
		get.Header.Del("Date")
		head.Header.Del("Date")
		if head.StatusCode != get.StatusCode || !reflect.DeepEqual(head.Header, get.Header) {
			t.Errorf("%s: HEAD gives %d %v, GET %d %v", path, head.StatusCode, head.Header, get.StatusCode, get.Header)
		}
		if head.body != "" || head.ContentLength != int64(len(get.body)) {
			t.Errorf("%s: HEAD gives length %d and body %q, want %d and none", path, head.ContentLength, head.body, len(get.body))
		}
	}
}

// A body is not read, so it must not seem to have said something. It ends the
// connection.
func TestRequestBodyEndsTheConnection(t *testing.T) {
	server := newTestServer(t, map[string]string{"token": freshJWT(apiServer)}, false)
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"GET with the parameter":   {"GET /v1/token HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 14\r\n\r\naudience=vault", 400},
		"GET with a length":        {"GET /v1/token HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello", 400},
		"GET in chunks":            {"GET /v1/token HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400},
		"POST of 10 GB":            {"POST /v1/token HTTP/1.1\r\nHost: HOST\r\nContent-Length: 10000000000\r\n\r\n", 405},
		"POST of what never comes": {"POST /v1/token HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\n", 405},
		"POST with 100-continue":   {"POST /v1/token HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", 405},
	} {
		t.Run(name, func(t *testing.T) {
			if answer := server.send(t, test.request); answer.StatusCode != test.status || !answer.closed {
				t.Errorf("got status %d (closed: %v), want %d and the connection closed", answer.StatusCode, answer.closed, test.status)
			}
		})
	}
}

func TestPanicIsAnsweredAndLoggedWithoutTheRequest(t *testing.T) {
	log := new(syncBuffer)
	handler := &Handler{refused: refusals.NewLog(slog.New(slog.NewTextHandler(log, nil)), time.Now)}
	for name, cause := range map[string]func(){
		"a runtime error": func() { _ = make([]int, 0)[len(log.String())+1] },
		"the path itself": func() { panic("/v1/secret") },
	} {
		t.Run(name, func(t *testing.T) {
			recorder := httptest.NewRecorder()
			request := httptest.NewRequest("GET", "/v1/secret", nil)
			func() {
				defer handler.recoverPanic(recorder, request)
				cause()
			}()
			if recorder.Code != 500 || recorder.Header().Get("Content-Type") != mediaProblem {
				t.Errorf("got status %d with %v", recorder.Code, recorder.Header())
			}
		})
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("two panics in a minute wrote %d lines, want 1", lines)
	}
	if !strings.Contains(log.String(), "kind=internal-error") || strings.Contains(log.String(), "secret") {
		t.Errorf("want the kind and nothing of the request in the log:\n%s", log)
	}
}
