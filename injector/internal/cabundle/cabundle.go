// Package cabundle makes the API server trust a webhook that issues its own
// certificate: it writes the webhook's CA into its MutatingWebhookConfiguration, and
// again whenever somebody has replaced the configuration by one without it.
//
// It asks every few seconds. A watch would see a change at once, but takes two more
// verbs, and more code than one object is worth.
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
	"sync"
	"time"
)

// Publisher keeps one CA in one configuration.
type Publisher struct {
	api           *apiServer
	configuration string
	log           *slog.Logger

	mu       sync.Mutex
	problem  error  // nil while the CA is there, as far as is known
	reported string // the last failure that was logged
}

// NewPublisher returns a Publisher for the MutatingWebhookConfiguration of that
// name. It takes the API server's address from the environment and the pod's
// rights from folder, as in ServiceAccountFolder.
func NewPublisher(configuration string, getenv func(string) string, folder string, log *slog.Logger) (*Publisher, error) {
	api, err := dial(getenv, folder)
	if err != nil {
		return nil, err
	}
	return &Publisher{api: api, configuration: configuration, log: log, problem: errors.New("not tried yet")}, nil
}

// Problem says why the CA is not in the configuration; nil while it is. An API
// server that does not answer takes nothing away.
func (p *Publisher) Problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.problem == nil {
		return nil
	}
	return fmt.Errorf("the CA is not in MutatingWebhookConfiguration %s: %w", p.configuration, p.problem)
}

// Keep has ca, a certificate in PEM, in the configuration until ctx ends. pause tells
// how long to wait after an attempt: failures is the number of those that failed
// since the last that did not.
func (p *Publisher) Keep(ctx context.Context, ca []byte, pause func(failures int) <-chan time.Time) {
	for failures := 0; ; {
		written, err := p.write(ctx, ca)
		if ctx.Err() != nil {
			return
		}
		failures++
		if p.record(written, err); err == nil {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-pause(failures):
		}
	}
}

// record keeps the outcome of an attempt, and logs it when there is something new.
func (p *Publisher) record(written bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		if written || p.problem != nil {
			p.log.Info("CA published", "configuration", p.configuration)
		}
		p.problem, p.reported = nil, ""
		return
	}
	var unknown *unknownError
	if p.problem != nil || !errors.As(err, &unknown) {
		p.problem = err
	}
	if p.reported != err.Error() {
		p.log.Warn("CA not published, trying again", "configuration", p.configuration, "err", err)
		p.reported = err.Error()
	}
}

// unknownError is a failure that does not tell whether the CA is there.
type unknownError struct{ error }

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

// write reads the configuration, and writes the CA to every webhook in it where one
// has it not. The resourceVersion makes the API server refuse when somebody else was
// faster.
func (p *Publisher) write(ctx context.Context, ca []byte) (written bool, err error) {
	path := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + url.PathEscape(p.configuration)
	var current configuration
	var status *statusError
	if err := p.api.do(ctx, http.MethodGet, path, "", nil, &current); errors.As(err, &status) && status.code == http.StatusNotFound {
		return false, err
	} else if err != nil {
		return false, &unknownError{err}
	}
	if len(current.Webhooks) == 0 {
		return false, errors.New("there is no webhook in it: apply the manifests again")
	}
	missing := false
	for i := range current.Webhooks {
		bundle := &current.Webhooks[i].ClientConfig.CABundle
		if !bytes.Contains(*bundle, ca) {
			*bundle, missing = withOthers(ca, *bundle, time.Now()), true
		}
	}
	if !missing {
		return false, nil
	}
	// A strategic merge by the webhooks' names: all else stays as it is.
	err = p.api.do(ctx, http.MethodPatch, path+"?fieldManager=imds-webhook", "application/strategic-merge-patch+json", current, nil)
	return err == nil, err
}

// maxOthers is how many CAs stay beside the own one. It must not be fewer than the
// other replicas that run at any time, during roll-outs too: each would write its CA
// anew whenever another one pushes it out.
const maxOthers = 7

// withOthers returns ca followed by the newest certificates of bundle: other
// replicas serve with a CA of their own, and one that this one replaces does until
// its connections are drained. Those that have expired are dropped.
func withOthers(ca, bundle []byte, now time.Time) []byte {
	all := bytes.Clone(ca)
	for others := 0; others < maxOthers; {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		if other, err := x509.ParseCertificate(block.Bytes); err == nil && now.Before(other.NotAfter) {
			all = append(all, pem.EncodeToMemory(block)...)
			others++
		}
	}
	return all
}
