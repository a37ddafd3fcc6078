package cabundle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// ServiceAccountFolder is where the kubelet mounts what a pod needs to speak to
// the API server: ca.crt and token among it.
const ServiceAccountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	requestTimeout = 10 * time.Second
	// maxAnswer is more than the largest object that the API server stores.
	maxAnswer = 3 << 20
)

// apiServer speaks to the API server as the pod's ServiceAccount.
type apiServer struct {
	address   string // host:port
	tokenFile string
	client    *http.Client
}

// dial finds the API server in the pod's environment (KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT) and the right to speak to it in folder. It does not
// connect yet.
func dial(getenv func(string) string, folder string) (*apiServer, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: run in a pod")
	}
	ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("%w: set automountServiceAccountToken on the pod", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s has no certificate in it", filepath.Join(folder, "ca.crt"))
	}
	return &apiServer{
		address:   net.JoinHostPort(host, port),
		tokenFile: filepath.Join(folder, "token"),
		client: &http.Client{
			// No proxy from the environment, and no redirection: the token is for
			// the API server alone.
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Timeout:       requestTimeout,
		},
	}, nil
}

// statusError is an answer other than 200, with the API server's own reason.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// do sends a request; body and answer are JSON, where they are not nil. A status
// other than 200 is a statusError.
func (s *apiServer) do(ctx context.Context, method, path, contentType string, body, answer any) error {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+s.address+path, &content)
	if err != nil {
		return err
	}
	// Read each time: the kubelet renews it.
	token, err := os.ReadFile(s.tokenFile)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return &statusError{response.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, response.Status, reason(response.Body))}
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("%s %s: the answer is not understood: %w", method, path, err)
	}
	return nil
}

// reason reads why the API server refused, from the Status that it sends.
func reason(body io.Reader) string {
	var status struct {
		Message string `json:"message"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&status); err != nil {
		return "no reason given"
	}
	return fmt.Sprintf("%.300q", status.Message)
}
