package cabundle

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/internal/apiservertest"
	"github.com/example/kubevirt-imds/injector/selfsigned"
)

func newCA(t *testing.T, lifetime time.Duration) []byte {
	t.Helper()
	bundle, err := selfsigned.Issue(lifetime, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	return bundle.CA
}

// attempts is a wait function that lets the next attempt begin when the test says
// so.
type attempts struct {
	failed chan int
	again  chan time.Time
}

func newAttempts() attempts {
	return attempts{failed: make(chan int), again: make(chan time.Time)}
}

func (a attempts) wait(attempt int) <-chan time.Time {
	a.failed <- attempt
	return a.again
}

// never is for a publisher that must not fail.
func never(t *testing.T) func(int) <-chan time.Time {
	return func(attempt int) <-chan time.Time {
		t.Errorf("attempt %d failed", attempt)
		return nil
	}
}

func newPublisher(t *testing.T, c *apiservertest.Server) (*Publisher, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	p, err := NewPublisher("imds-webhook", c.Getenv, c.Folder, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return p, &log
}

// publish must succeed at once.
func publish(t *testing.T, c *apiservertest.Server, ca []byte) {
	t.Helper()
	p, _ := newPublisher(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p.Publish(ctx, ca, func(int) <-chan time.Time { cancel(); return nil })
	if err := p.Problem(); err != nil {
		t.Fatal(err)
	}
}

func TestCAIsWrittenToEveryWebhookAndNothingElse(t *testing.T) {
	c := apiservertest.New(t)
	want := c.Configuration.DeepCopy()
	ca := newCA(t, time.Hour)
	p, log := newPublisher(t, c)
	if p.Namespace() != "infra" {
		t.Errorf("namespace %q", p.Namespace())
	}
	if err := p.Problem(); err == nil {
		t.Error("there is no problem before the CA is published")
	}
	p.Publish(t.Context(), ca, never(t))
	if err := p.Problem(); err != nil {
		t.Error(err)
	}
	for i := range want.Webhooks {
		want.Webhooks[i].ClientConfig.CABundle = ca
	}
	want.ResourceVersion = "2"
	if diff := cmp.Diff(want, c.Configuration); diff != "" {
		t.Errorf("(-want +stored):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"GET " + apiservertest.Path, "PATCH " + apiservertest.Path + "?fieldManager=imds-webhook"}, c.Requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if !strings.Contains(log.String(), "CA published") || strings.Contains(log.String(), c.Token) {
		t.Errorf("log %q", log)
	}
}

func TestPreviousCAStaysWhileItsPodIsDrained(t *testing.T) {
	c := apiservertest.New(t)
	first, second, third := newCA(t, time.Hour), newCA(t, time.Hour), newCA(t, time.Hour)
	want := func(what string, bundle []byte) {
		t.Helper()
		if got := c.Configuration.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(got, bundle) {
			t.Errorf("%s: the caBundle is\n%s, want\n%s", what, got, bundle)
		}
	}
	publish(t, c, first)
	want("the first", first)
	publish(t, c, second)
	want("the second", bytes.Join([][]byte{second, first}, nil))
	publish(t, c, second)
	want("the second again", bytes.Join([][]byte{second, first}, nil))
	publish(t, c, third)
	want("the third", bytes.Join([][]byte{third, second}, nil))
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
			c := apiservertest.New(t)
			c.Configuration.Webhooks[0].ClientConfig.CABundle = bundle
			publish(t, c, ca)
			if got := c.Configuration.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(got, ca) {
				t.Errorf("the caBundle is %q", got)
			}
		})
	}
}

func TestPublisherTriesUntilItSucceeds(t *testing.T) {
	for name, test := range map[string]struct {
		broken, repaired func(*apiservertest.Server)
		says             string
	}{
		"no configuration yet": {
			func(c *apiservertest.Server) { c.Configuration = nil },
			func(c *apiservertest.Server) { c.Configuration = apiservertest.NewConfiguration() },
			"404 Not Found",
		},
		"no webhook in it": {
			func(c *apiservertest.Server) { c.Configuration.Webhooks = nil },
			func(c *apiservertest.Server) { c.Configuration.Webhooks = apiservertest.NewConfiguration().Webhooks },
			"apply the manifests again",
		},
		"token not valid": {
			func(c *apiservertest.Server) { c.Token = "second-token" },
			func(c *apiservertest.Server) { c.Mount(t, "token", "second-token") },
			"401 Unauthorized",
		},
		"changed in between": {
			func(c *apiservertest.Server) { c.BeforePatch = func() { c.Configuration.Labels["a"] = "c" } },
			func(*apiservertest.Server) {},
			"409 Conflict",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := apiservertest.New(t)
			c.Update(test.broken)
			ca := newCA(t, time.Hour)
			p, log := newPublisher(t, c)
			attempts := newAttempts()
			done := make(chan struct{})
			go func() { defer close(done); p.Publish(t.Context(), ca, attempts.wait) }()

			<-attempts.failed
			if err := p.Problem(); err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "imds-webhook") {
				t.Errorf("the problem is %v, which does not say %s", err, test.says)
			}
			if name != "changed in between" {
				// The same again is not logged again.
				attempts.again <- time.Time{}
				<-attempts.failed
			}
			c.Update(test.repaired)
			attempts.again <- time.Time{}
			<-done
			if err := p.Problem(); err != nil {
				t.Error(err)
			}
			if got := c.Configuration.Webhooks[1].ClientConfig.CABundle; !bytes.Equal(got, ca) {
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
		c := apiservertest.New(t)
		c.Handle(thief.Config.Handler)
		c.Mount(t, "ca.crt", string(newCA(t, time.Hour)))
		p, log := newPublisher(t, c)
		wantFailure(t, p, "certificate")
		if stolen != "" || strings.Contains(log.String(), c.Token) {
			t.Errorf("a server with another CA got %q; log %s", stolen, log)
		}
	})
	t.Run("redirected", func(t *testing.T) {
		c := apiservertest.New(t)
		c.Handle(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
		p, log := newPublisher(t, c)
		wantFailure(t, p, "307")
		if stolen != "" || strings.Contains(log.String(), c.Token) {
			t.Errorf("the redirection's target got %q; log %s", stolen, log)
		}
	})
}

func wantFailure(t *testing.T, p *Publisher, says string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p.Publish(ctx, newCA(t, time.Hour), func(int) <-chan time.Time { cancel(); return nil })
	if err := p.Problem(); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("the problem is %v, which does not say %s", err, says)
	}
}

func TestOutsideOfAPodIsAnError(t *testing.T) {
	nothing := func(string) string { return "" }
	for name, test := range map[string]struct {
		prepare func(c *apiservertest.Server) func(string) string
		says    string
	}{
		"no environment": {func(*apiservertest.Server) func(string) string { return nothing }, "KUBERNETES_SERVICE_HOST"},
		"no token mounted": {func(c *apiservertest.Server) func(string) string {
			if err := os.RemoveAll(c.Folder); err != nil {
				t.Fatal(err)
			}
			return c.Getenv
		}, "automountServiceAccountToken"},
		"no namespace": {func(c *apiservertest.Server) func(string) string {
			if err := os.Remove(filepath.Join(c.Folder, "namespace")); err != nil {
				t.Fatal(err)
			}
			return c.Getenv
		}, "namespace"},
		"no CA": {func(c *apiservertest.Server) func(string) string { c.Mount(t, "ca.crt", "x"); return c.Getenv }, "ca.crt has no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			c := apiservertest.New(t)
			_, err := NewPublisher("imds-webhook", test.prepare(c), c.Folder, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v does not say %s", err, test.says)
			}
		})
	}
}
