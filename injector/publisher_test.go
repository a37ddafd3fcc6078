package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newCA(t *testing.T, lifetime time.Duration) []byte {
	t.Helper()
	return issue(t, lifetime, "localhost").CA
}

// keeper is a publisher at work, whose pauses end when the test says so.
type keeper struct {
	*publisher
	t      *testing.T
	log    *bytes.Buffer
	paused chan int // gets the number of failures
	again  chan time.Time
	ended  chan struct{}
}

// keep starts a publisher and waits until it has tried once.
func keep(t *testing.T, c *testAPI, ca []byte) (k *keeper, failures int) {
	t.Helper()
	p, log := testPublisher(t, c, ca)
	k = &keeper{p, t, log, make(chan int), make(chan time.Time), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	p.pause = func(failures int) <-chan time.Time {
		select {
		case k.paused <- failures:
		case <-ctx.Done():
		}
		return k.again
	}
	go func() {
		defer close(k.ended)
		p.run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-k.ended })
	return k, <-k.paused
}

// look has it try again.
func (k *keeper) look() (failures int) {
	k.t.Helper()
	select {
	case k.again <- time.Time{}:
		select {
		case failures := <-k.paused:
			return failures
		case <-k.ended:
		}
	case <-k.ended:
	}
	k.t.Fatal("it does not look any more")
	return 0
}

// wantFailures has it try again and checks how many attempts have failed since the
// last that did not.
func (k *keeper) wantFailures(want int) {
	k.t.Helper()
	if failures := k.look(); failures != want {
		k.t.Errorf("%d failures, want %d", failures, want)
	}
}

// wantPublished checks that ca is in every webhook.
func wantPublished(t *testing.T, p *publisher, c *testAPI, ca []byte) {
	t.Helper()
	if err := p.status(); err != nil {
		t.Error(err)
	}
	for _, webhook := range c.configuration.Webhooks {
		if !bytes.Contains(webhook.ClientConfig.CABundle, ca) {
			t.Errorf("the caBundle of %s is %q", webhook.Name, webhook.ClientConfig.CABundle)
		}
	}
}

func wantProblem(t *testing.T, p *publisher, says string) {
	t.Helper()
	if err := p.status(); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "imds-webhook") {
		t.Errorf("the problem is %v, which does not say %s", err, says)
	}
}

func testPublisher(t *testing.T, c *testAPI, ca []byte) (*publisher, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	p, err := newPublisher(ca, nil, podEnvironment{c.getenv, c.folder}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return p, &log
}

// publish must succeed at once.
func publish(t *testing.T, c *testAPI, ca []byte) {
	t.Helper()
	if k, failures := keep(t, c, ca); failures != 0 {
		t.Fatal(k.status())
	}
}

func TestCAIsWrittenToEveryWebhookAndNothingElse(t *testing.T) {
	c := newTestAPI(t)
	want := c.configuration.DeepCopy()
	ca := newCA(t, time.Hour)
	p, _ := testPublisher(t, c, ca)
	if err := p.status(); err == nil {
		t.Error("there is no problem before the CA is published")
	}
	k, failures := keep(t, c, ca)
	if err := k.status(); err != nil || failures != 0 {
		t.Errorf("%d failures: %v", failures, err)
	}
	for i := range want.Webhooks {
		want.Webhooks[i].ClientConfig.CABundle = ca
	}
	want.ResourceVersion = "2"
	if diff := cmp.Diff(want, c.configuration); diff != "" {
		t.Errorf("(-want +stored):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"GET " + testAPIPath, "PATCH " + testAPIPath + "?fieldManager=imds-webhook"}, c.requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if !strings.Contains(k.log.String(), "CA published") || strings.Contains(k.log.String(), c.token) {
		t.Errorf("log %q", k.log)
	}
}

func TestCAComesBack(t *testing.T) {
	for name, takeAway := range map[string]func(*testAPI){
		"replaced":            func(c *testAPI) { c.configuration = newConfiguration() },
		"of one webhook only": func(c *testAPI) { c.configuration.Webhooks[1].ClientConfig.CABundle = nil },
		"by another CA": func(c *testAPI) {
			c.configuration.Webhooks[0].ClientConfig.CABundle = newCA(t, time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestAPI(t)
			ca := newCA(t, time.Hour)
			k, _ := keep(t, c, ca)
			c.update(takeAway)
			k.wantFailures(0)
			wantPublished(t, k.publisher, c, ca)
			if lines := strings.Count(k.log.String(), "CA published"); lines != 2 {
				t.Errorf("%d lines, want 2:\n%s", lines, k.log)
			}
		})
	}
}

func TestConfigurationDeletedAndAppliedAgain(t *testing.T) {
	c := newTestAPI(t)
	ca := newCA(t, time.Hour)
	k, _ := keep(t, c, ca)
	c.update(func(c *testAPI) { c.configuration = nil })
	for want := 1; want <= 2; want++ {
		k.wantFailures(want)
		wantProblem(t, k.publisher, "404 Not Found")
	}
	c.update(func(c *testAPI) { c.configuration = newConfiguration() })
	k.wantFailures(0)
	wantPublished(t, k.publisher, c, ca)
	if warnings := strings.Count(k.log.String(), "level=WARN"); warnings != 1 {
		t.Errorf("%d warnings, want 1:\n%s", warnings, k.log)
	}
}

// An API server that cannot be asked does not call the webhook either; what is
// published stays so.
func TestAPIServerThatDoesNotAnswerTakesNothingAway(t *testing.T) {
	c := newTestAPI(t)
	ca := newCA(t, time.Hour)
	k, _ := keep(t, c, ca)
	c.update(func(c *testAPI) { c.token = "second-token" })
	k.wantFailures(1)
	wantPublished(t, k.publisher, c, ca)
	if warnings := strings.Count(k.log.String(), "level=WARN"); warnings != 1 {
		t.Errorf("%d warnings, want 1:\n%s", warnings, k.log)
	}
}

// Somebody removed the rights with another installation: nothing can be published.
func TestRightsThatAreGoneAreAProblem(t *testing.T) {
	c := newTestAPI(t)
	k, _ := keep(t, c, newCA(t, time.Hour))
	c.handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message":"forbidden"}`, http.StatusForbidden)
	}))
	k.look()
	if err := k.publisher.status(); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("got %v", err)
	}
}

// TestReplicasDoNotFight: each has a CA of its own, and all of them stay.
func TestReplicasDoNotFight(t *testing.T) {
	c := newTestAPI(t)
	var replicas []*keeper
	var cas [][]byte
	const all = maxOthers + 1
	for range all {
		ca := newCA(t, time.Hour)
		k, _ := keep(t, c, ca)
		replicas, cas = append(replicas, k), append(cas, ca)
	}
	version := c.configuration.ResourceVersion
	for _, k := range replicas {
		k.wantFailures(0)
	}
	for i, k := range replicas {
		wantPublished(t, k.publisher, c, cas[i])
	}
	if got := c.configuration.ResourceVersion; got != version {
		t.Errorf("a replica wrote once more: version %s, then %s", version, got)
	}

	// The next one pushes out the oldest, which is on its way out: the bundle does
	// not grow for ever.
	next := newCA(t, time.Hour)
	publish(t, c, next)
	want := slices.Clone(next)
	for i := range all - 1 {
		want = append(want, cas[all-1-i]...)
	}
	if got := c.configuration.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(got, want) {
		t.Errorf("the caBundle is\n%s, want\n%s", got, want)
	}
}

func TestWhatIsNoLongerGoodIsDropped(t *testing.T) {
	ca := newCA(t, time.Hour)
	for name, bundle := range map[string][]byte{
		"expired":     newCA(t, -time.Minute),
		"not PEM":     []byte("\n"),
		"not X.509":   []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
		"nothing yet": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestAPI(t)
			c.configuration.Webhooks[0].ClientConfig.CABundle = bundle
			publish(t, c, ca)
			if got := c.configuration.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(got, ca) {
				t.Errorf("the caBundle is %q", got)
			}
		})
	}
}

func TestPublisherTriesUntilItSucceeds(t *testing.T) {
	for name, test := range map[string]struct {
		broken, repaired func(*testAPI)
		says             string
	}{
		"no configuration yet": {
			func(c *testAPI) { c.configuration = nil },
			func(c *testAPI) { c.configuration = newConfiguration() },
			"404 Not Found",
		},
		"no webhook in it": {
			func(c *testAPI) { c.configuration.Webhooks = nil },
			func(c *testAPI) { c.configuration.Webhooks = newConfiguration().Webhooks },
			"apply the manifests again",
		},
		"token not valid": {
			func(c *testAPI) { c.token = "second-token" },
			func(c *testAPI) { c.mount(t, "token", "second-token") },
			"401 Unauthorized",
		},
		"changed in between": {
			func(c *testAPI) { c.beforePatch = func() { c.configuration.Labels["a"] = "c" } },
			func(*testAPI) {},
			"409 Conflict",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestAPI(t)
			c.update(test.broken)
			ca := newCA(t, time.Hour)
			k, failures := keep(t, c, ca)
			if failures != 1 {
				t.Errorf("%d failures, want 1", failures)
			}
			wantProblem(t, k.publisher, test.says)
			if name != "changed in between" {
				// The same again is not logged again.
				k.wantFailures(2)
			}
			c.update(test.repaired)
			k.wantFailures(0)
			if err := k.status(); err != nil {
				t.Error(err)
			}
			log := k.log
			if got := c.configuration.Webhooks[1].ClientConfig.CABundle; !bytes.Equal(got, ca) {
				t.Errorf("the caBundle is %q", got)
			}
			if warnings := strings.Count(log.String(), "level=WARN"); warnings != 1 {
				t.Errorf("%d warnings, want 1:\n%s", warnings, log)
			}
			if strings.Contains(log.String(), "-token") {
				t.Errorf("a token is in the log:\n%s", log)
			}
		})
	}
}

func TestOnlyTheAPIServerGetsTheToken(t *testing.T) {
	var stolen string
	thief := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stolen = r.Header.Get("Authorization")
	}))
	defer thief.Close()

	t.Run("not trusted", func(t *testing.T) {
		c := newTestAPI(t)
		c.handle(thief.Config.Handler)
		c.mount(t, "ca.crt", string(newCA(t, time.Hour)))
		k, _ := keep(t, c, newCA(t, time.Hour))
		wantProblem(t, k.publisher, "certificate")
		if stolen != "" || strings.Contains(k.log.String(), c.token) {
			t.Errorf("a server with another CA got %q; log %s", stolen, k.log)
		}
	})
	t.Run("redirected", func(t *testing.T) {
		c := newTestAPI(t)
		c.handle(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
		k, _ := keep(t, c, newCA(t, time.Hour))
		wantProblem(t, k.publisher, "307")
		if stolen != "" || strings.Contains(k.log.String(), c.token) {
			t.Errorf("the redirection's target got %q; log %s", stolen, k.log)
		}
	})
}

func TestOutsideOfAPodIsAnError(t *testing.T) {
	nothing := func(string) string { return "" }
	for name, test := range map[string]struct {
		prepare func(c *testAPI) func(string) string
		says    string
	}{
		"no environment": {func(*testAPI) func(string) string { return nothing }, "KUBERNETES_SERVICE_HOST"},
		"no token mounted": {func(c *testAPI) func(string) string {
			if err := os.RemoveAll(c.folder); err != nil {
				t.Fatal(err)
			}
			return c.getenv
		}, "automountServiceAccountToken"},
		"no CA": {func(c *testAPI) func(string) string { c.mount(t, "ca.crt", "x"); return c.getenv }, "ca.crt has no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestAPI(t)
			_, err := newPublisher(nil, nil, podEnvironment{test.prepare(c), c.folder}, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v does not say %s", err, test.says)
			}
		})
	}
}

// A cluster gives its API server the certificate of another CA, and pods the new one.
func TestClusterCAThatIsRenewed(t *testing.T) {
	c := newTestAPI(t)
	ca := newCA(t, time.Hour)
	k, _ := keep(t, c, ca)
	wantPublished(t, k.publisher, c, ca)

	other := issue(t, time.Hour, "127.0.0.1")
	pair, err := tls.X509KeyPair(other.Certificate, other.Key)
	if err != nil {
		t.Fatal(err)
	}
	renewed := httptest.NewUnstartedServer(c)
	renewed.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	renewed.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	renewed.StartTLS()
	t.Cleanup(renewed.Close)
	k.url = renewed.URL + configurationPath
	c.configuration.Webhooks[0].ClientConfig.CABundle = nil
	k.wantFailures(1)
	c.mount(t, "ca.crt", string(other.CA))
	k.wantFailures(0)
	wantPublished(t, k.publisher, c, ca)
}
