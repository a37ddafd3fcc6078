package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   []string
		env    map[string]string
		status int
		stdout string
		stderr string
	}{
		{[]string{"--version"}, nil, exitOK, "imds-init ", ""},
		{[]string{"init", "--version"}, nil, exitOK, "imds-init ", ""},
		{[]string{"--help"}, nil, exitOK, "", "IMDS_BRIDGE_NAME"},
		{[]string{"--twice"}, nil, exitUsage, "", "usage: imds-init"},
		{[]string{"agent", "now"}, nil, exitUsage, "", `unknown argument "now"; run imds-init --help`},
		{[]string{"--help"}, nil, exitOK, "", "IMDS_PODS_DIR"},
		{[]string{"serve"}, nil, exitUsage, "", `unknown argument "serve"; run imds-init --help`},
		{nil, map[string]string{"IMDS_BRIDGE_NAME": "k6t-a-name-too-long"}, exitFailed, "", `IMDS_BRIDGE_NAME "k6t-a-name-too-long" is longer than 15 bytes; give the name`},
		{nil, map[string]string{"IMDS_BRIDGE_NAME": "../tap0"}, exitFailed, "", `IMDS_BRIDGE_NAME "../tap0" is not an interface name; give the name`},
		{nil, map[string]string{"IMDS_REDIRECT_PORT": "80"}, exitFailed, "", `IMDS_REDIRECT_PORT "80" is not a port from 1024 to 65535; give the one`},
		{nil, map[string]string{"IMDS_REDIRECT_PORT": "65536"}, exitFailed, "", `IMDS_REDIRECT_PORT "65536" is not a port`},
		{nil, map[string]string{"IMDS_REDIRECT_PORT": "http"}, exitFailed, "", `IMDS_REDIRECT_PORT "http" is not a port`},
	} {
		t.Run(fmt.Sprint(c.args, c.env), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			getenv := func(name string) string { return c.env[name] }
			status := run(t.Context(), c.args, getenv, &stdout, &stderr)
			if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("status %d, want %d\nstdout %q, want %q\nstderr %q, want %q", status, c.status, &stdout, c.stdout, &stderr, c.stderr)
			}
		})
	}
}

// startOnce runs imds-init --once to its end.
func startOnce(t *testing.T, pod *podnet.Pod, env ...string) (output string, err error) {
	t.Helper()
	return newInit(t, pod, onThisKernel, env...).Exec(t.Context(), "/imds-init", "--once")
}

func TestOnce(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
	output, err := startOnce(t, pod)
	if err == nil || !strings.Contains(output, "nobody to serve: missing a bridge named k6t-*; run without --once to wait for it") {
		t.Errorf("without a bridge: %v, %s", err, output)
	}
	must(t, pod.Wire())
	if output, err = startOnce(t, pod); err != nil {
		t.Fatalf("with a bridge: %v, %s", err, output)
	}
	must(t, pod.StartGuest())
	serve(t, pod)
	mustServe(t, pod, guestAddress(podnet.Bridge))
}

// A pod that cannot be served is not harmed: one clear line, no endpoint, the
// guest's own network as it was, and a process that stays, since a failing
// container would hold back the VM.
func TestKernelWithoutNetfilter(t *testing.T) {
	pod := newPod(t, podnet.Options{Binding: podnet.Bridge})
	p := start(t, pod, withoutNetfilter)
	p.waitFor(t, "the node's kernel lacks nf_tables")
	must(t, pod.Wire())
	must(t, pod.StartGuest())
	pingGateway(t, pod)
	if _, err := pod.Pod.Netlink().LinkByName(wiring.Device); err == nil {
		t.Errorf("%s is there, though nobody could be kept from it", wiring.Device)
	}
	if lines := p.said(); len(lines) > 0 {
		t.Errorf("it says the same again: %q", lines)
	}
	must(t, p.Stop())
	p.waitFor(t, "stopped")
}

// Where the rules can no longer be had the endpoint leaves the bridge, and
// comes back with them.
func TestWithoutRulesNobodyIsServed(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Bridge})
	giveBack := takeTable(t, pod)
	p.waitFor(t, `msg="not served" reason="nf_tables: `)
	if answer, err := ask(pod); err == nil {
		t.Errorf("guest was answered %q without the rules", answer)
	}
	giveBack()
	p.waitFor(t, "msg=wired")
	mustServe(t, pod, guestAddress(podnet.Bridge))
}

func TestStopsOnSIGTERMAndLeavesTheWiring(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Masquerade})
	if err := p.Stop(); err != nil {
		t.Errorf("status after SIGTERM: %v", err)
	}
	p.waitFor(t, "stopped; the wiring stays")
	mustServe(t, pod, guestAddress(podnet.Masquerade))
}
