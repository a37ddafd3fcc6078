package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// configurationName is the name of the webhook's MutatingWebhookConfiguration.
const configurationName = "imds-webhook"
const configurationPath = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + configurationName

// publisher writes the CA of a webhook that issues its own certificate into the MutatingWebhookConfiguration,
// and again whenever it is gone. It asks: a watch would take two more verbs. A nil publisher does nothing.
type publisher struct {
	ca        []byte                              // PEM
	pause     func(failures int) <-chan time.Time // after so many attempts that failed
	url       string
	tokenFile string
	caFile    string
	trusted   []byte // what client goes by
	client    *http.Client
	log       *slog.Logger

	mu      sync.Mutex
	problem error // nil while the CA is there, as far as is known
	told    problems
}

// newPublisher finds the API server and the right to speak to it in the pod's environment.
func newPublisher(ca []byte, pause func(int) <-chan time.Time, pod podEnvironment, log *slog.Logger) (*publisher, error) {
	host, port := pod.getenv("KUBERNETES_SERVICE_HOST"), pod.getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: run in a pod")
	}
	p := &publisher{
		ca: ca, pause: pause, log: log.With("configuration", configurationName), problem: errors.New("not tried yet"), told: problems{},
		url:       "https://" + net.JoinHostPort(host, port) + configurationPath,
		tokenFile: filepath.Join(pod.serviceAccountFolder, "token"),
		caFile:    filepath.Join(pod.serviceAccountFolder, "ca.crt"),
	}
	if err := p.connect(); err != nil {
		return nil, fmt.Errorf("%w: set automountServiceAccountToken on the pod", err)
	}
	return p, nil
}

// connect makes a client by what the pod trusts now: a cluster's CA is renewed, too.
func (p *publisher) connect() error {
	trusted, err := os.ReadFile(p.caFile)
	if err != nil || bytes.Equal(trusted, p.trusted) {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(trusted) {
		return fmt.Errorf("%s has no certificate in it", p.caFile)
	}
	p.trusted, p.client = trusted, &http.Client{
		// No proxy from the environment, and no redirection: the token is for the API server alone.
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       10 * time.Second,
	}
	return nil
}

// status says why the CA is not in the configuration. An API server that does not answer takes nothing away.
func (p *publisher) status() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.problem == nil {
		return nil
	}
	return fmt.Errorf("the CA is not in MutatingWebhookConfiguration %s: %w", configurationName, p.problem)
}

// run keeps the CA in the configuration until ctx ends.
func (p *publisher) run(ctx context.Context) {
	if p == nil {
		return
	}
	for failures := 0; ; {
		written, known, err := p.write(ctx)
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		if failures++; err == nil {
			failures = 0
			if written || p.problem != nil {
				p.log.Info("CA published")
			}
		}
		if known || p.problem != nil {
			p.problem = err
		}
		p.told.tell(p.log.Warn, "CA not published, trying again", err)
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-p.pause(failures):
		}
	}
}

// configuration is the part of a MutatingWebhookConfiguration that is read and written here.
type configuration struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Webhooks []struct {
		Name         string `json:"name"`
		ClientConfig struct {
			CABundle []byte `json:"caBundle"` // base64 in JSON
		} `json:"clientConfig"`
	} `json:"webhooks"`
}

// write writes the CA to every webhook that has it not. The resourceVersion makes the API server refuse when
// somebody else was faster. An error is known when it tells that the CA is not there.
func (p *publisher) write(ctx context.Context) (written, known bool, err error) {
	current, code, err := p.ask(ctx, http.MethodGet, "", nil)
	if err != nil {
		return false, code == http.StatusNotFound || code == http.StatusForbidden, err
	}
	if len(current.Webhooks) == 0 {
		return false, true, errors.New("there is no webhook in it: apply the manifests again")
	}
	for i := range current.Webhooks {
		if bundle := &current.Webhooks[i].ClientConfig.CABundle; !bytes.Contains(*bundle, p.ca) {
			*bundle, written = withOthers(p.ca, *bundle, time.Now()), true
		}
	}
	if written {
		// A strategic merge by the webhooks' names: all else stays as it is.
		var patch []byte
		if patch, err = json.Marshal(current); err == nil {
			_, _, err = p.ask(ctx, http.MethodPatch, "?fieldManager=imds-webhook", patch)
		}
	}
	return written, true, err
}

// ask sends a request; an answer other than 200 is an error with the API server's own reason.
func (p *publisher) ask(ctx context.Context, method, query string, patch []byte) (answer configuration, code int, err error) {
	request, errRequest := http.NewRequestWithContext(ctx, method, p.url+query, bytes.NewReader(patch))
	token, err := os.ReadFile(p.tokenFile) // each time: the kubelet renews it
	if err := errors.Join(errRequest, err, p.connect()); err != nil {
		return answer, 0, err
	}
	request.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	response, err := p.client.Do(request)
	if err != nil {
		return answer, 0, err
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(io.LimitReader(response.Body, maxObject))
	where := method + " " + configurationPath + query
	if response.StatusCode != http.StatusOK {
		var status struct{ Message string }
		reason := "no reason given"
		if decoder.Decode(&status) == nil {
			reason = fmt.Sprintf("%.300q", status.Message)
		}
		return answer, response.StatusCode, fmt.Errorf("%s: %s: %s", where, response.Status, reason)
	}
	if err = decoder.Decode(&answer); err != nil {
		err = fmt.Errorf("%s: the answer is not understood: %w", where, err)
	}
	return answer, response.StatusCode, err
}

// maxOthers is how many CAs stay beside the own one, of some 600 bytes each: more than other replicas run.
const maxOthers = 31

// withOthers returns ca followed by the newest certificates of bundle, with which other replicas serve, but
// for those that have expired.
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
