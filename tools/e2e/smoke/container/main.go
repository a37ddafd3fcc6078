// Command container runs in each container of the smoke test's pod, as its argument says, and writes what it
// finds there to its standard output, one fact a line: name=value.
package main

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
	"os/signal"
	"strings"
	"syscall"
)

const (
	tokenFile    = "/var/run/secrets/tokens/token"
	apiTokenFile = "/var/run/secrets/api/token"
	apiCAFile    = "/var/run/secrets/api/ca.crt"
	greeting     = "hello from the sidecar"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, facts io.Writer) error {
	roles := map[string]func(context.Context, io.Writer) error{
		"network": network, "server": server, "probe": probe, "compute": compute,
	}
	if len(args) != 1 || roles[args[0]] == nil {
		return fmt.Errorf("arguments %q: want one of network, server, probe, compute", args)
	}
	return roles[args[0]](ctx, facts)
}

// network is a native sidecar that may change the pod's network.
func network(ctx context.Context, facts io.Writer) error {
	if err := writeProcess(facts); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// server is a native sidecar that listens on port 80 without a capability.
func server(ctx context.Context, facts io.Writer) error {
	if err := writeProcess(facts); err != nil {
		return err
	}
	if err := writeToken(facts); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		return err
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, greeting)
	}))
	<-ctx.Done()
	return nil
}

func probe(context.Context, io.Writer) error {
	_, err := greet()
	return err
}

// compute is the pod's regular container: the sidecars are up when it starts.
func compute(_ context.Context, facts io.Writer) error {
	text, err := greet()
	if err != nil {
		return err
	}
	fmt.Fprintf(facts, "sidecar=%s\n", text)
	return writeReview(facts)
}

func greet() (string, error) {
	response, err := http.Get("http://127.0.0.1/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// writeProcess writes who this process is and what the kernel lets it do (proc_pid_status(5)).
func writeProcess(facts io.Writer) error {
	fmt.Fprintf(facts, "uid=%d\n", os.Getuid())
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "CapEff", "CapBnd", "NoNewPrivs", "Seccomp":
			fmt.Fprintf(facts, "%s=%s\n", name, strings.TrimSpace(value))
		}
	}
	return nil
}

// writeToken writes who may read the projected token, and that this process can.
func writeToken(facts io.Writer) error {
	info, err := os.Stat(tokenFile)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	_, err = os.ReadFile(tokenFile)
	fmt.Fprintf(facts, "token mode=%v\ntoken owner=%d:%d\ntoken readable=%t\n", info.Mode(), owner.Uid, owner.Gid, err == nil)
	return nil
}

// writeReview has the API server, reached by its Service, say whose the projected token is.
func writeReview(facts io.Writer) error {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "authentication.k8s.io/v1",
		"kind":       "TokenReview",
		"spec":       map[string]any{"token": string(token), "audiences": []string{"smoke"}},
	})
	if err != nil {
		return err
	}
	response, err := post("/apis/authentication.k8s.io/v1/tokenreviews", body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("TokenReview: %s", response.Status)
	}
	var review struct {
		Status struct {
			Authenticated bool     `json:"authenticated"`
			Audiences     []string `json:"audiences"`
			User          struct {
				Username string `json:"username"`
			} `json:"user"`
		} `json:"status"`
	}
	if err := json.NewDecoder(response.Body).Decode(&review); err != nil {
		return err
	}
	s := review.Status
	fmt.Fprintf(facts, "authenticated=%t\nuser=%s\naudiences=%s\n", s.Authenticated, s.User.Username, strings.Join(s.Audiences, ","))
	return nil
}

// post sends a request to the API server as a client in a pod does.
func post(path string, body []byte) (*http.Response, error) {
	authority, err := os.ReadFile(apiCAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, errors.New(apiCAFile + " holds no certificate")
	}
	token, err := os.ReadFile(apiTokenFile)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	request, err := http.NewRequest(http.MethodPost, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	return client.Do(request)
}
