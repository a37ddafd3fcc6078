package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/injector/selfsigned"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/container"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// webhookService is the Service that the API server calls.
const webhookService = "imds-webhook.kubevirt-imds.svc:443"

// Where the webhook listens.
const (
	webhookAddress = "127.0.0.1:8443"
	healthAddress  = "127.0.0.1:8081"
)

// webhookReady is more than the webhook ever takes to get ready.
const webhookReady = 10 * time.Second

// webhook is the running imds-webhook.
type webhook struct {
	network   *podnet.Namespace
	container *container.Container
	caBundle  []byte
}

// startWebhook starts imds-webhook from its image, as its Deployment does: its
// certificate comes as a Secret, the pod patches as a ConfigMap. The folder is
// for these.
func startWebhook(ctx context.Context, h handover, folder string) (*webhook, error) {
	host, _, _ := strings.Cut(webhookService, ":")
	bundle, err := selfsigned.Issue(24*time.Hour, host)
	if err != nil {
		return nil, err
	}
	files, err := kubelet.Patches(filepath.Join(h.source, "kustomize", "sidecar"))
	if err != nil {
		return nil, err
	}
	patches := map[string][]byte{}
	for _, file := range files {
		patches[file.Name] = file.Content
	}
	spec := container.Spec{
		Name:    "imds-webhook",
		Image:   h.imageFolder(webhookImage),
		Scratch: filepath.Join(folder, "root"),
		Command: []string{"/imds-webhook", "--listen", webhookAddress, "--health-listen", healthAddress,
			"--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key", "--service", host,
			"--patches", "/patches", "--server-image", serverImage},
		UID: 65532, GID: 65532,
		ReadOnlyRoot:    true,
		NoNewPrivileges: true,
	}
	for target, files := range map[string]map[string][]byte{
		"/tls":     {"tls.crt": bundle.Certificate, "tls.key": bundle.Key},
		"/patches": patches,
	} {
		source := filepath.Join(folder, "volumes", target)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return nil, err
		}
		if err := kubelet.WriteVolume(source, files, 0o644, nil); err != nil {
			return nil, err
		}
		spec.Mounts = append(spec.Mounts, container.Mount{Source: source, Target: target, ReadOnly: true})
	}
	if err := os.MkdirAll(spec.Scratch, 0o755); err != nil {
		return nil, err
	}
	return runWebhook(ctx, h, spec, bundle.CA)
}

func runWebhook(ctx context.Context, h handover, spec container.Spec, caBundle []byte) (*webhook, error) {
	log, err := h.openLog("imds-webhook")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	network, err := podnet.NewNamespace("control plane")
	if err != nil {
		return nil, err
	}
	w := &webhook{network: network, caBundle: caBundle}
	if w.container, err = container.Start(network, spec, log); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	if err := w.awaitReady(ctx); err != nil {
		said, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("%w: %s", err, said), w.stop())
	}
	return w, nil
}

// awaitReady asks for readiness as the kubelet does, only more often.
func (w *webhook) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, webhookReady)
	defer cancel()
	client := w.network.HTTPClient()
	for {
		err := ready(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-w.container.Done():
			return fmt.Errorf("imds-webhook has ended with exit code %d", w.container.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("imds-webhook is not ready: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+healthAddress+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// stop ends it at once: in a cluster it would drain first.
func (w *webhook) stop() error {
	w.container.Kill()
	return w.network.Close()
}
