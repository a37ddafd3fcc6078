package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/injector/selfsigned"
)

func webhookComparisons() []comparison {
	var all []comparison
	for _, parallel := range []int{1, 16, 256} {
		name := fmt.Sprintf("admission, %d at a time", parallel)
		all = append(all, comparison{
			name: fmt.Sprintf("admission-%d", parallel),
			figures: []figure{{name: name, unit: "reviews/s", more: true}, {name: name + ", answered", unit: "%", more: true},
				{name: name + ", processor time", unit: "µs"}, {name: name + ", p50", unit: "ms"}},
			prepare: func(b *bench) (ours, reference measurement, err error) {
				return bothWebhooks(b, func(w *webhook) ([]float64, error) {
					l, err := w.underLoad(parallel, b.time, w.client)
					return []float64{l.rate(), 100 * float64(len(l.answered)) / float64(l.asked), l.cpuEach(), quantile(l.answered, 0.5)}, err
				})
			},
		})
	}
	const burst = 1000
	return append(all, comparison{
		name: "admission-burst",
		figures: []figure{{name: "1,000 admissions at once, answered", unit: "", more: true}, {name: "1,000 admissions at once, p50", unit: "ms"},
			{name: "1,000 admissions at once, p99", unit: "ms"}, {name: "imds-webhook after these, resident", unit: "MB"}},
		prepare: func(b *bench) (ours, reference measurement, err error) {
			return bothWebhooks(b, func(w *webhook) ([]float64, error) { return w.burst(burst) })
		},
	})
}

// webhook is imds-webhook or the reference, with a client for it.
type webhook struct {
	*process
	url    string
	review []byte
	http   *http.Client
}

// bothWebhooks starts imds-webhook, and the reference with the answer that it gave.
func bothWebhooks(b *bench, measure func(*webhook) ([]float64, error)) (ours, reference measurement, err error) {
	review, err := podReview(b)
	if err != nil {
		return nil, nil, err
	}
	w, err := startWebhook(b, review)
	if err != nil {
		return nil, nil, err
	}
	var answered bytes.Buffer
	if err := w.ask(&answered); err != nil {
		return nil, nil, err
	}
	if !bytes.Contains(answered.Bytes(), []byte(`"patch":`)) {
		return nil, nil, fmt.Errorf("imds-webhook does not patch the pod: %s", &answered)
	}
	constant, err := startConstant(b, w, answered.Bytes())
	if err != nil {
		return nil, nil, err
	}
	return func() ([]float64, error) { return measure(w) }, func() ([]float64, error) { return measure(constant) }, nil
}

func startWebhook(b *bench, review []byte) (*webhook, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	health, err := freeAddress()
	if err != nil {
		return nil, err
	}
	const service = "imds-webhook.kubevirt-imds.svc"
	bundle, err := selfsigned.Issue(24*time.Hour, service)
	if err != nil {
		return nil, err
	}
	certificate, errCertificate := b.file("tls.crt", bundle.Certificate)
	key, errKey := b.file("tls.key", bundle.Key)
	if err := errors.Join(errCertificate, errKey); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle.CA)
	w := &webhook{url: "https://" + address + "/mutate-pod", review: review, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: service},
		ForceAttemptHTTP2: true,
	}}}
	w.process, err = b.start(nil, nil, b.binaries.webhook, "--listen", address, "--health-listen", health, "--tls-cert", certificate, "--tls-key", key,
		"--service", service, "--patches", filepath.Join(b.binaries.source, "kustomize", "sidecar"), "--server-image", "registry.example.com/imds/server:bench")
	if err != nil {
		return nil, err
	}
	return w, w.await("answering", func() bool { return w.ask(io.Discard) == nil })
}

// startConstant starts the reference with imds-webhook's certificate.
func startConstant(b *bench, like *webhook, answer []byte) (*webhook, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	file, err := b.file("review", answer)
	if err != nil {
		return nil, err
	}
	w := &webhook{url: "https://" + address + "/", review: like.review, http: &http.Client{Transport: like.http.Transport.(*http.Transport).Clone()}}
	if w.process, err = b.start(nil, nil, b.binaries.reference, address, file, filepath.Join(b.work, "tls.crt"), filepath.Join(b.work, "tls.key")); err != nil {
		return nil, err
	}
	return w, w.await("answering", func() bool { return w.ask(io.Discard) == nil })
}

// podReview is the creation of a virt-launcher pod as KubeVirt makes it.
func podReview(b *bench) ([]byte, error) {
	pod, err := os.ReadFile(filepath.Join(b.binaries.source, "tools", "demo", "pods", "masquerade.json"))
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"apiVersion": "admission.k8s.io/v1",
		"kind":       "AdmissionReview",
		"request": map[string]any{
			"uid":       "7a9f0f5c-3f0e-4f2a-8d52-0f3a5b1c2d3e",
			"kind":      map[string]any{"group": "", "version": "v1", "kind": "Pod"},
			"resource":  map[string]any{"group": "", "version": "v1", "resource": "pods"},
			"namespace": "tenant-a",
			"operation": "CREATE",
			"userInfo":  map[string]any{"username": "system:serviceaccount:kubevirt:kubevirt-controller"},
			"object":    json.RawMessage(pod),
			"options":   map[string]any{"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
		},
	})
}

// ask sends the review and takes the answer.
func (w *webhook) ask(into io.Writer) error {
	response, err := w.http.Post(w.url, "application/json", bytes.NewReader(w.review))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(into, response.Body)
	return err
}

// client shares its connections with the others, as those of an API server.
func (w *webhook) client() (client, error) {
	return client{func() error { return w.ask(io.Discard) }, func() {}}, nil
}

// burst asks so many times at once.
func (w *webhook) burst(many int) ([]float64, error) {
	var asking sync.WaitGroup
	var mu sync.Mutex
	var each []time.Duration
	for range many {
		asking.Go(func() {
			asked := time.Now()
			err := w.ask(io.Discard)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				each = append(each, time.Since(asked))
			}
		})
	}
	asking.Wait()
	slices.Sort(each)
	_, resident, err := w.memory()
	return []float64{float64(len(each)), quantile(each, 0.5), quantile(each, 0.99), resident}, err
}
