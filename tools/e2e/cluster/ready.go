package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/example/kubevirt-imds/tools/e2e/pki"
)

// newClient makes an HTTP client that connects inside the sandbox, with the certificate of a user.
func (c *Cluster) newClient(authority *pki.Authority, user pki.Pair) (*http.Client, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Certificate())
	certificate, err := tls.X509KeyPair(user.Certificate, user.Key)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		DialContext:     c.DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	}}, nil
}

// answersOK is a check of a component that answers 200 at the address when it is ready.
func (c *Cluster) answersOK(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		body, err := c.get(ctx, address)
		if err != nil {
			return err
		}
		return body.Close()
	}
}

// listens is a check of a component that listens on a Unix socket when it is ready.
func (c *Cluster) listens(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.sandbox.Path(socket))
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// reports is a check that watches one object of the API and passes at the first state that satisfies.
func (c *Cluster) reports(collection, name string, satisfies func(object) bool) func(context.Context) error {
	query := url.Values{"watch": {"true"}, "fieldSelector": {"metadata.name=" + name}}
	return func(ctx context.Context) error {
		body, err := c.get(ctx, "https://"+apiServer+collection+"?"+query.Encode())
		if err != nil {
			return err
		}
		defer body.Close()
		for events := json.NewDecoder(body); ; {
			var event struct {
				Object object `json:"object"`
			}
			if err := events.Decode(&event); err != nil {
				return fmt.Errorf("watch %s: %w", collection, err)
			}
			if event.Object.Metadata.Name == name && satisfies(event.Object) {
				return nil
			}
		}
	}
}

// object is what the checks read of an object of the API.
type object struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
	} `json:"status"`
}

func exists(object) bool { return true }

func isReady(o object) bool {
	for _, condition := range o.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True"
		}
	}
	return false
}

// get returns the body of an answer with status 200; any other is an error.
func (c *Cluster) get(ctx context.Context, address string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("%s answers %s", address, response.Status)
	}
	return response.Body, nil
}
