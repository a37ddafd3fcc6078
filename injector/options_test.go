package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/selfsigned"
)

// runOnce runs the program with a context that has ended: what comes up drains
// and ends at once.
func runOnce(args ...string) (status int, stdout, stderr string) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, err bytes.Buffer
	status = run(ctx, args, podEnvironment{getenv: func(string) string { return "" }}, &out, &err, immediately)
	return status, out.String(), err.String()
}

func TestWrongCommandLines(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing":                 {nil, "--patches is missing"},
		"no image":                {[]string{"--patches", "p", "--self-signed"}, "--server-image is missing"},
		"image with a space":      {[]string{"--patches", "p", "--server-image", "a b", "--self-signed"}, `--server-image "a b" has white space`},
		"no certificate":          {[]string{"--patches", "p", "--server-image", "i"}, "no certificate: give both --tls-cert and --tls-key, or --self-signed"},
		"certificate without key": {[]string{"--patches", "p", "--server-image", "i", "--tls-cert", "c"}, "no certificate: give both --tls-cert and --tls-key"},
		"key without certificate": {[]string{"--patches", "p", "--server-image", "i", "--tls-key", "k"}, "no certificate: give both --tls-cert and --tls-key"},
		"files and self-signed":   {[]string{"--patches", "p", "--server-image", "i", "--tls-cert", "c", "--tls-key", "k", "--self-signed"}, "--self-signed contradicts"},
		"unknown flag":            {[]string{"--tls-ca", "x"}, "not defined: -tls-ca"},
		"an argument":             {[]string{"serve"}, `argument "serve" is not expected`},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := runOnce(test.args...)
			if status != 2 || stdout != "" || !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "--help") {
				t.Errorf("status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, test.want)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for args, want := range map[string]string{
		"--help":    "usage:\n  imds-webhook --patches DIR",
		"-h":        "--self-signed",
		"--version": "imds-webhook ",
	} {
		status, stdout, stderr := runOnce(args)
		if status != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%s: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

// Every flag is in the usage text, which is all the documentation there is.
func TestUsageNamesEveryFlag(t *testing.T) {
	for _, flag := range []string{"listen", "health-listen", "tls-cert", "tls-key", "self-signed", "patches", "server-image", "version"} {
		if !strings.Contains(usage, "  --"+flag+" ") {
			t.Errorf("--%s is not explained", flag)
		}
	}
}

func TestFailuresAtTheStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, err := selfsigned.Issue(time.Hour, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	two, err := selfsigned.Issue(time.Hour, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := write("tls.crt", one.Certificate), write("tls.key", one.Key)
	otherKey, noPEM := write("other.key", two.Key), write("not.pem", []byte("hello"))
	empty := t.TempDir()
	pair := []string{"--tls-cert", certificate, "--tls-key", key}

	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"certificate missing":     {[]string{"--tls-cert", dir + "/none", "--tls-key", key}, []string{dir + "/none: no such file", "TLS Secret"}},
		"key missing":             {[]string{"--tls-cert", certificate, "--tls-key", dir + "/none"}, []string{dir + "/none: no such file", "TLS Secret"}},
		"key of another":          {[]string{"--tls-cert", certificate, "--tls-key", otherKey}, []string{certificate, otherKey, "does not match", "belong together"}},
		"certificate is no PEM":   {[]string{"--tls-cert", noPEM, "--tls-key", key}, []string{noPEM, "must be PEM"}},
		"outside of a pod":        {[]string{"--self-signed"}, []string{"--self-signed: KUBERNETES_SERVICE_HOST", "run in a pod, or give --tls-cert and --tls-key"}},
		"patches missing":         {append(pair, "--patches", dir+"/none"), []string{dir + "/none: no such file"}},
		"patches empty":           {append(pair, "--patches", empty), []string{"no patch files in " + empty}},
		"address in use or wrong": {append(pair, "--listen", "192.0.2.1:1"), []string{"--listen 192.0.2.1:1: "}},
		"health address wrong":    {append(pair, "--health-listen", "nowhere"), []string{"--health-listen nowhere: "}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--patches", declaredPatches, "--server-image", serverImage,
				"--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"}, test.args...)
			status, _, stderr := runOnce(args...)
			if status != 1 {
				t.Errorf("status %d", status)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("log without %q:\n%s", want, stderr)
				}
			}
		})
	}
}
