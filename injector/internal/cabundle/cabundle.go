// Package cabundle makes the API server trust a webhook that issues its own
// certificate: it writes the webhook's CA into its MutatingWebhookConfiguration.
//
// It does so once, at the start. Nothing takes the CA away afterwards: the
// manifests do not name the field, so that applying them again leaves it alone.
package cabundle

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Publisher writes one CA into one configuration.
type Publisher struct {
	api           *apiServer
	namespace     string
	configuration string
	log           *slog.Logger

	mu      sync.Mutex
	problem error // nil once the CA is published
}

// NewPublisher returns a Publisher for the MutatingWebhookConfiguration of that
// name. It takes the API server's address from the environment and the pod's
// rights from folder, as in ServiceAccountFolder.
func NewPublisher(configuration string, getenv func(string) string, folder string, log *slog.Logger) (*Publisher, error) {
	api, err := dial(getenv, folder)
	if err != nil {
		return nil, err
	}
	namespace, err := os.ReadFile(filepath.Join(folder, "namespace"))
	if err != nil {
		return nil, err
	}
	return &Publisher{
		api:           api,
		namespace:     strings.TrimSpace(string(namespace)),
		configuration: configuration,
		log:           log,
		problem:       errors.New("not tried yet"),
	}, nil
}

// Namespace is the pod's own.
func (p *Publisher) Namespace() string { return p.namespace }

// Problem says why the API server does not trust the CA yet; nil once it does.
func (p *Publisher) Problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.problem == nil {
		return nil
	}
	return fmt.Errorf("the CA is not in MutatingWebhookConfiguration %s yet: %w", p.configuration, p.problem)
}

// Publish writes ca, a certificate in PEM, and tries again until it succeeds or
// ctx ends. wait tells how long to wait after which attempt, counted from 0.
func (p *Publisher) Publish(ctx context.Context, ca []byte, wait func(attempt int) <-chan time.Time) {
	for attempt := 0; ; attempt++ {
		err := p.try(ctx, ca)
		if ctx.Err() != nil {
			return
		}
		p.record(err)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-wait(attempt):
		}
	}
}

// record keeps the outcome of an attempt, and logs it when it is another one.
func (p *Publisher) record(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.log.Info("CA published", "configuration", p.configuration)
	case p.problem == nil || p.problem.Error() != err.Error():
		p.log.Warn("CA not published, trying again", "configuration", p.configuration, "err", err)
	}
	p.problem = err
}

// configuration is the part of a MutatingWebhookConfiguration that is read and
// written here.
type configuration struct {
	Metadata metadata  `json:"metadata"`
	Webhooks []webhook `json:"webhooks"`
}

type metadata struct {
	ResourceVersion string `json:"resourceVersion"`
}

type webhook struct {
	Name         string       `json:"name"`
	ClientConfig clientConfig `json:"clientConfig"`
}

type clientConfig struct {
	CABundle []byte `json:"caBundle"` // base64 in JSON
}

// try reads the configuration and writes the CA to every webhook in it. The
// resourceVersion makes the API server refuse when somebody else was faster.
func (p *Publisher) try(ctx context.Context, ca []byte) error {
	path := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + url.PathEscape(p.configuration)
	var current configuration
	if err := p.api.do(ctx, http.MethodGet, path, "", nil, &current); err != nil {
		return err
	}
	if len(current.Webhooks) == 0 {
		return errors.New("there is no webhook in it: apply the manifests again")
	}
	for i := range current.Webhooks {
		bundle := &current.Webhooks[i].ClientConfig.CABundle
		*bundle = withPrevious(ca, *bundle, time.Now())
	}
	// A strategic merge by the webhooks' names: all else stays as it is.
	return p.api.do(ctx, http.MethodPatch, path+"?fieldManager=imds-webhook", "application/strategic-merge-patch+json", current, nil)
}

// withPrevious returns ca followed by the first certificate of bundle: the pod
// that this one replaces serves until its connections are drained, and the key of
// its CA is gone with it. An expired one is dropped, and what was before it.
func withPrevious(ca, bundle []byte, now time.Time) []byte {
	if bytes.HasPrefix(bundle, ca) {
		return bundle
	}
	block, _ := pem.Decode(bundle)
	if block == nil {
		return ca
	}
	previous, err := x509.ParseCertificate(block.Bytes)
	if err != nil || now.After(previous.NotAfter) {
		return ca
	}
	return slices.Concat(ca, pem.EncodeToMemory(block))
}
