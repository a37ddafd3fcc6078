package cabundle

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
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

// keeper is a Publisher at work, whose pauses end when the test says so.
type keeper struct {
	*Publisher
	t      *testing.T
	log    *bytes.Buffer
	paused chan int // gets the number of failures
	again  chan time.Time
	ended  chan struct{}
}

// keep starts a Publisher and waits until it has tried once.
func keep(t *testing.T, c *apiservertest.Server, ca []byte) (k *keeper, failures int) {
	t.Helper()
	p, log := newPublisher(t, c)
	k = &keeper{p, t, log, make(chan int), make(chan time.Time), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(k.ended)
		p.Keep(ctx, ca, func(failures int) <-chan time.Time {
			select {
			case k.paused <- failures:
			case <-ctx.Done():
			}
			return k.again
		})
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

// wantPublished checks that ca is in every webhook.
func wantPublished(t *testing.T, p *Publisher, c *apiservertest.Server, ca []byte) {
	t.Helper()
	if err := p.Problem(); err != nil {
		t.Error(err)
	}
	for _, webhook := range c.Configuration.Webhooks {
		if !bytes.Contains(webhook.ClientConfig.CABundle, ca) {
			t.Errorf("the caBundle of %s is %q", webhook.Name, webhook.ClientConfig.CABundle)
		}
	}
}

func wantProblem(t *testing.T, p *Publisher, says string) {
	t.Helper()
	if err := p.Problem(); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "imds-webhook") {
		t.Errorf("the problem is %v, which does not say %s", err, says)
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
	if k, failures := keep(t, c, ca); failures != 0 {
		t.Fatal(k.Problem())
	}
}

func TestCAIsWrittenToEveryWebhookAndNothingElse(t *testing.T) {
	c := apiservertest.New(t)
	want := c.Configuration.DeepCopy()
	ca := newCA(t, time.Hour)
	p, _ := newPublisher(t, c)
	if err := p.Problem(); err == nil {
		t.Error("there is no problem before the CA is published")
	}
	k, failures := keep(t, c, ca)
	if err := k.Problem(); err != nil || failures != 0 {
		t.Errorf("%d failures: %v", failures, err)
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
	if !strings.Contains(k.log.String(), "CA published") || strings.Contains(k.log.String(), c.Token) {
		t.Errorf("log %q", k.log)
	}
}

func TestCAComesBack(t *testing.T) {
	for name, takeAway := range map[string]func(*apiservertest.Server){
		"replaced":            func(c *apiservertest.Server) { c.Configuration = apiservertest.NewConfiguration() },
		"of one webhook only": func(c *apiservertest.Server) { c.Configuration.Webhooks[1].ClientConfig.CABundle = nil },
		"by another CA": func(c *apiservertest.Server) {
			c.Configuration.Webhooks[0].ClientConfig.CABundle = newCA(t, time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := apiservertest.New(t)
			ca := newCA(t, time.Hour)
			k, _ := keep(t, c, ca)
			c.Update(takeAway)
			if failures := k.look(); failures != 0 {
				t.Errorf("%d failures", failures)
			}
			wantPublished(t, k.Publisher, c, ca)
			if lines := strings.Count(k.log.String(), "CA published"); lines != 2 {
				t.Errorf("%d lines, want 2:\n%s", lines, k.log)
			}
		})
	}
}

func TestConfigurationDeletedAndAppliedAgain(t *testing.T) {
	c := apiservertest.New(t)
	ca := newCA(t, time.Hour)
	k, _ := keep(t, c, ca)
	c.Update(func(c *apiservertest.Server) { c.Configuration = nil })
	for want := 1; want <= 2; want++ {
		if failures := k.look(); failures != want {
			t.Errorf("%d failures, want %d", failures, want)
		}
		wantProblem(t, k.Publisher, "404 Not Found")
	}
	c.Update(func(c *apiservertest.Server) { c.Configuration = apiservertest.NewConfiguration() })
	if failures := k.look(); failures != 0 {
		t.Errorf("%d failures", failures)
	}
	wantPublished(t, k.Publisher, c, ca)
	if warnings := strings.Count(k.log.String(), "level=WARN"); warnings != 1 {
		t.Errorf("%d warnings, want 1:\n%s", warnings, k.log)
	}
}

// An API server that cannot be asked does not call the webhook either; what is
// published stays so.
func TestAPIServerThatDoesNotAnswerTakesNothingAway(t *testing.T) {
	c := apiservertest.New(t)
	ca := newCA(t, time.Hour)
	k, _ := keep(t, c, ca)
	c.Update(func(c *apiservertest.Server) { c.Token = "second-token" })
	if failures := k.look(); failures != 1 {
		t.Errorf("%d failures, want 1", failures)
	}
	wantPublished(t, k.Publisher, c, ca)
	if warnings := strings.Count(k.log.String(), "level=WARN"); warnings != 1 {
		t.Errorf("%d warnings, want 1:\n%s", warnings, k.log)
	}
}

// TestReplicasDoNotFight: each has a CA of its own, and all of them stay.
func TestReplicasDoNotFight(t *testing.T) {
	c := apiservertest.New(t)
	var replicas []*keeper
	var cas [][]byte
	const all = 8
	for range all {
		ca := newCA(t, time.Hour)
		k, _ := keep(t, c, ca)
		replicas, cas = append(replicas, k), append(cas, ca)
	}
	version := c.Configuration.ResourceVersion
	for _, k := range replicas {
		if failures := k.look(); failures != 0 {
			t.Errorf("%d failures", failures)
		}
	}
	for i, k := range replicas {
		wantPublished(t, k.Publisher, c, cas[i])
	}
	if got := c.Configuration.ResourceVersion; got != version {
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
	if got := c.Configuration.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(got, want) {
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
			k, failures := keep(t, c, ca)
			if failures != 1 {
				t.Errorf("%d failures, want 1", failures)
			}
			wantProblem(t, k.Publisher, test.says)
			if name != "changed in between" {
				// The same again is not logged again.
				if failures := k.look(); failures != 2 {
					t.Errorf("%d failures, want 2", failures)
				}
			}
			c.Update(test.repaired)
			if failures := k.look(); failures != 0 {
				t.Errorf("%d failures, want 0", failures)
			}
			if err := k.Problem(); err != nil {
				t.Error(err)
			}
			log := k.log
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
		k, _ := keep(t, c, newCA(t, time.Hour))
		wantProblem(t, k.Publisher, "certificate")
		if stolen != "" || strings.Contains(k.log.String(), c.Token) {
			t.Errorf("a server with another CA got %q; log %s", stolen, k.log)
		}
	})
	t.Run("redirected", func(t *testing.T) {
		c := apiservertest.New(t)
		c.Handle(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
		k, _ := keep(t, c, newCA(t, time.Hour))
		wantProblem(t, k.Publisher, "307")
		if stolen != "" || strings.Contains(k.log.String(), c.Token) {
			t.Errorf("the redirection's target got %q; log %s", stolen, k.log)
		}
	})
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
