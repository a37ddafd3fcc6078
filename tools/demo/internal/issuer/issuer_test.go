package issuer

import (
	"strings"
	"testing"
	"time"
)

var web = Kubernetes{
	Namespace:      "tenant-a",
	Node:           Reference{"node-1", "n"},
	Pod:            Reference{"virt-launcher-web-x", "p"},
	ServiceAccount: Reference{"web", "s"},
}

func issue(t *testing.T, i *Issuer, audience string, lifetime time.Duration) string {
	t.Helper()
	token, err := i.Issue(web, audience, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newIssuer(t *testing.T) *Issuer {
	t.Helper()
	i, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestIssuedTokenIsVerified(t *testing.T) {
	i := newIssuer(t)
	for audience, want := range map[string]string{"": URL, "vault": "vault"} {
		header, claims, err := i.Verify(issue(t, i, audience, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if header.Algorithm != "ES256" || claims.Subject != "system:serviceaccount:tenant-a:web" || claims.Kubernetes != web ||
			len(claims.Audience) != 1 || claims.Audience[0] != want || claims.Expires-claims.IssuedAt != 3600 {
			t.Errorf("%+v %+v", header, claims)
		}
	}
}

func TestTokensOfTheSameSecondDiffer(t *testing.T) {
	i := newIssuer(t)
	one, other := issue(t, i, "", time.Hour), issue(t, i, "", time.Hour)
	if one == other {
		t.Error("two tokens are equal")
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	i := newIssuer(t)
	good := issue(t, i, "", time.Hour)
	parts := strings.Split(good, ".")
	other := strings.Split(issue(t, i, "other", time.Hour), ".")
	for name, token := range map[string]string{
		"of another issuer":          issue(t, newIssuer(t), "", time.Hour),
		"expired":                    issue(t, i, "", -time.Second),
		"with another's payload":     parts[0] + "." + other[1] + "." + parts[2],
		"without signature":          parts[0] + "." + parts[1] + ".",
		"unsigned, by its header":    encode([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"of two parts":               parts[0] + "." + parts[1],
		"with a header that is none": "x." + parts[1] + "." + parts[2],
		"empty":                      "",
	} {
		if _, _, err := i.Verify(token); err == nil {
			t.Errorf("a token %s is accepted", name)
		} else if token != "" && strings.Contains(err.Error(), parts[1]) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}
