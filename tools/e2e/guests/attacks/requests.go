package attacks

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// foreignRequests: requests that reach the guest's own network stack from elsewhere: by a page in its browser, by
// DNS rebinding, by a proxy that somebody else uses.
func foreignRequests(s *scene) {
	for _, request := range []struct {
		hand.Get
		status int
	}{
		{hand.Get{Header: map[string]string{"Host": "evil.example"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"Host": "169.254.169.254.evil.example"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"Host": "localhost"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"X-Forwarded-For": "203.0.113.1"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"Forwarded": "for=203.0.113.1"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"X-Real-IP": "203.0.113.1"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"Origin": "https://evil.example"}}, http.StatusForbidden},
		{hand.Get{Header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, http.StatusForbidden},
		{hand.Get{Method: http.MethodPost, Body: "token"}, http.StatusMethodNotAllowed},
		{hand.Get{Method: http.MethodPut}, http.StatusMethodNotAllowed},
		{hand.Get{Method: http.MethodDelete}, http.StatusMethodNotAllowed},
		{hand.Get{Method: http.MethodOptions}, http.StatusMethodNotAllowed},
		{hand.Get{Method: http.MethodTrace}, http.StatusMethodNotAllowed},
		{hand.Get{URL: stage.MetadataURL + "/v1/token/../token"}, 0},
		{hand.Get{URL: stage.MetadataURL + "//v1/token"}, 0},
	} {
		got := s.get(request.Get)
		what := strings.TrimSpace(fmt.Sprintf("%s %s %v", request.Method, request.URL, request.Header))
		switch {
		case strings.Contains(got.Body, s.token):
			s.answered("%s: the token", what)
		case request.status != 0 && got.Status != request.status:
			s.answered("%s: %s%d, want %d", what, got.Failure, got.Status, request.status)
		}
	}
}
