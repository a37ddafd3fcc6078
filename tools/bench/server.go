package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// connections is how many a load on the server keeps.
const connections = 16

func serverComparisons() []comparison {
	return []comparison{
		{
			name:    "token",
			figures: []figure{{name: "`/v1/token`", unit: "requests/s", more: true}, {name: "`/v1/token`, processor time", unit: "µs"}},
			prepare: func(b *bench) (ours, reference measurement, err error) { return serverUnderLoad(b, "/v1/token") },
		}, {
			name:    "identity",
			figures: []figure{{name: "`/v1/identity`", unit: "requests/s", more: true}, {name: "`/v1/identity`, processor time", unit: "µs"}},
			prepare: func(b *bench) (ours, reference measurement, err error) { return serverUnderLoad(b, "/v1/identity") },
		}, {
			name:    "server-start",
			figures: []figure{{name: "imds-server, start to first answer", unit: "ms"}},
			prepare: serverStart,
		}, {
			name:    "server-memory",
			figures: []figure{{name: "imds-server after load, private", unit: "MB"}, {name: "imds-server after load, resident", unit: "MB"}},
			prepare: serverMemory,
		},
	}
}

// startServer starts imds-server on lo, and returns when it answers.
func startServer(b *bench) (p *process, address string, err error) {
	if address, err = freeAddress(); err != nil {
		return nil, "", err
	}
	environment, err := serverEnvironment(b, "IMDS_LISTEN_DEVICE=", "IMDS_LISTEN_ADDR="+address)
	if err != nil {
		return nil, "", err
	}
	if p, err = b.start(nil, environment, b.binaries.server); err != nil {
		return nil, "", err
	}
	return p, address, p.awaitAnswer(address, "/v1/token")
}

func serverEnvironment(b *bench, more ...string) ([]string, error) {
	path := filepath.Join(b.work, "token")
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, []byte(token()), 0o644); err != nil {
			return nil, err
		}
		// The kubelet has written it long ago: of a younger one imds-server does not trust
		// the times, and reads it again.
		time.Sleep(1100 * time.Millisecond)
	}
	return append(more, "IMDS_TOKEN_PATH="+path, "IMDS_NAMESPACE=tenant-a", "IMDS_SA_NAME=default", "IMDS_VM_NAME=web-01",
		"IMDS_POD_NAME=virt-launcher-web-01-x7k2p", "IMDS_VMI_UID=0b6f5a1e-6a0f-4b8e-9d6b-1f0e7d9c2a34", "IMDS_NODE_NAME=worker-7"), nil
}

// token is one of a real one's size; its signature is none.
func token() string {
	payload, _ := json.Marshal(map[string]any{
		"aud": []string{"https://kubernetes.default.svc.cluster.local"},
		"exp": time.Now().Add(24 * time.Hour).Unix(),
		"iss": "https://kubernetes.default.svc.cluster.local",
		"kubernetes.io": map[string]any{
			"namespace":      "tenant-a",
			"pod":            map[string]string{"name": "virt-launcher-web-01-x7k2p", "uid": "0b6f5a1e-6a0f-4b8e-9d6b-1f0e7d9c2a34"},
			"serviceaccount": map[string]string{"name": "default", "uid": "5d1c7e0a-2f3b-4c8d-8e9f-a0b1c2d3e4f5"},
		},
		"sub": "system:serviceaccount:tenant-a:default",
	})
	var parts []string
	for _, part := range []string{`{"alg":"RS256","kid":"c2lnbmluZy1rZXktb2YtdGhlLWNsdXN0ZXI"}`, string(payload), strings.Repeat("signature", 28)} {
		parts = append(parts, base64.RawURLEncoding.EncodeToString([]byte(part)))
	}
	return strings.Join(parts, ".")
}

// startReference starts the minimal program with an answer, and returns when it gives it.
func startReference(b *bench, answer []byte) (p *process, address string, err error) {
	if address, err = freeAddress(); err != nil {
		return nil, "", err
	}
	file, err := b.file("answer", answer)
	if err != nil {
		return nil, "", err
	}
	if p, err = b.start(nil, nil, b.binaries.reference, address, file); err != nil {
		return nil, "", err
	}
	return p, address, p.awaitAnswer(address, "/")
}

func (b *bench) file(name string, content []byte) (path string, err error) {
	path = filepath.Join(b.work, name)
	return path, os.WriteFile(path, content, 0o644)
}

func (p *process) awaitAnswer(address, path string) error {
	return p.await("answering", func() bool { _, err := answer(address, path); return err == nil })
}

// serverUnderLoad compares a path with the minimal program that answers the same bytes.
func serverUnderLoad(b *bench, path string) (ours, reference measurement, err error) {
	server, address, err := startServer(b)
	if err != nil {
		return nil, nil, err
	}
	body, err := answer(address, path)
	if err != nil {
		return nil, nil, err
	}
	bare, bareAddress, err := startReference(b, body)
	if err != nil {
		return nil, nil, err
	}
	return loadOn(b, server, address, path), loadOn(b, bare, bareAddress, path), nil
}

func loadOn(b *bench, p *process, address, path string) measurement {
	return func() ([]float64, error) {
		l, err := p.underLoad(connections, b.time, func() (client, error) { return keptConnection(address, path) })
		return []float64{l.rate(), l.cpuEach()}, errors.Join(err, l.failed)
	}
}

func serverStart(b *bench) (ours, reference measurement, err error) {
	if _, err := serverEnvironment(b); err != nil { // makes the token
		return nil, nil, err
	}
	measure := func(start func() (*process, string, error)) measurement {
		return func() ([]float64, error) {
			began := time.Now()
			p, _, err := start()
			if err != nil {
				return nil, err
			}
			took := time.Since(began)
			p.stop()
			return []float64{milliseconds(took)}, nil
		}
	}
	return measure(func() (*process, string, error) { return startServer(b) }),
		measure(func() (*process, string, error) { return startReference(b, []byte("OK")) }), nil
}

func serverMemory(b *bench) (ours, reference measurement, err error) {
	measure := func(start func() (*process, string, error)) measurement {
		return func() ([]float64, error) {
			p, address, err := start()
			if err != nil {
				return nil, err
			}
			defer p.stop()
			if _, err := p.underLoad(connections, b.time, func() (client, error) { return keptConnection(address, "/v1/token") }); err != nil {
				return nil, err
			}
			private, resident, err := p.memory()
			return []float64{private, resident}, err
		}
	}
	return measure(func() (*process, string, error) { return startServer(b) }),
		measure(func() (*process, string, error) { return startReference(b, []byte(strings.Repeat("x", 1400))) }), nil
}
