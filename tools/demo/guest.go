package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/tools/demo/internal/issuer"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// metadataURL is the only thing that a guest has to know.
const metadataURL = "http://169.254.169.254"

// metadataIPv6URL is what a guest without IPv4 has to know.
const metadataIPv6URL = "http://[fe80::a9fe:a9fe%25eth0]"

// guest asks from inside the guest's network.
type guest struct {
	network *podnet.Namespace
	tokens  *issuer.Issuer
}

// answerLimit is how long a request may take. It takes a few milliseconds, but
// the machine may be busy.
const answerLimit = 10 * time.Second

// get is what "curl -s" prints: by curl itself where the machine has it.
func (g guest) get(ctx context.Context, path string) (string, error) {
	return g.curl(ctx, metadataURL+path, metadataURL+path)
}

// getIPv6 is get over IPv6.
func (g guest) getIPv6(ctx context.Context, path string) (string, error) {
	byNumber, err := g.network.MetadataURL("eth0")
	if err != nil {
		return "", err
	}
	return g.curl(ctx, metadataIPv6URL+path, byNumber+path)
}

// curl prints what is at a URL; forGo is the same where curl is missing.
func (g guest) curl(ctx context.Context, url, forGo string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		return g.getByGo(ctx, forGo)
	}
	var out strings.Builder
	cmd := exec.CommandContext(ctx, curl, "-s", url)
	cmd.Env = []string{} // no proxy of ours is the guest's
	cmd.Stdout = &out
	if err := g.network.Start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return "", fmt.Errorf("guest$ curl -s %s: no answer within %s", url, answerLimit)
	}
	if err != nil {
		return "", fmt.Errorf("guest$ curl -s %s: %w", url, err)
	}
	return out.String(), nil
}

func (g guest) getByGo(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := g.network.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// The guest begins an attempt at this pace, and gives each this long.
const (
	attemptPace  = 2 * time.Millisecond
	attemptLimit = 200 * time.Millisecond
)

// firstAnswerLimit is how long the guest goes on trying.
const firstAnswerLimit = 10 * time.Second

// firstAnswer measures how long after a moment the guest has got OK from
// /healthz. Every two milliseconds it makes one more attempt, by a connection
// of its own, and does not wait for the earlier ones: a first packet that came
// too soon, and that TCP would repeat only a second later, must not hide when
// the service was there.
func (g guest) firstAnswer(ctx context.Context, since time.Time) (*startDocument, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, firstAnswerLimit)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	answered := make(chan time.Duration, 1)
	attempt := func() {
		limited, cancel := context.WithTimeout(ctx, attemptLimit)
		defer cancel()
		if body, err := g.getByGo(limited, metadataURL+"/healthz"); err != nil || body != "OK" {
			return
		}
		select {
		case answered <- time.Since(since):
		default: // another was faster
		}
	}
	pace := time.NewTicker(attemptPace)
	defer pace.Stop()
	for begun := 1; ; begun++ {
		attempts.Go(attempt)
		select {
		case took := <-answered:
			return &startDocument{milliseconds(took), begun}, took, nil
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("the guest got no OK within %s", firstAnswerLimit)
		case <-pace.C:
		}
	}
}

// identity asks who the guest is.
func (g guest) identity(ctx context.Context) (body string, identity map[string]string, err error) {
	body, err = g.get(ctx, "/v1/identity")
	if err != nil {
		return "", nil, err
	}
	if err := json.Unmarshal([]byte(body), &identity); err != nil {
		return "", nil, fmt.Errorf("the answer to GET /v1/identity: %w", err)
	}
	return body, identity, nil
}

// token asks for the token and checks it as anyone would who trusts the issuer.
func (g guest) token(ctx context.Context) (body string, t *tokenDocument, err error) {
	body, err = g.get(ctx, "/v1/token")
	if err != nil {
		return "", nil, err
	}
	var answer struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Token == "" {
		return "", nil, errors.New("the answer to GET /v1/token holds no token")
	}
	t = &tokenDocument{Expires: answer.Expires}
	if t.Header, t.Claims, err = g.tokens.Verify(answer.Token); err != nil {
		return "", nil, err
	}
	t.Verified = true
	if answer.Expires.Unix() != t.Claims.Expires {
		return "", nil, fmt.Errorf("expirationTimestamp %s is not the token's exp %d", answer.Expires, t.Claims.Expires)
	}
	return strings.Replace(body, answer.Token, answer.Token[:20]+"...", 1), t, nil
}
