package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/server/internal/config"
)

func TestCommandLine(t *testing.T) {
	tests := map[string]struct {
		args   []string
		status int
		stdout string // part of it, empty if there is none
		stderr string
	}{
		"version":                   {[]string{"--version"}, 0, "imds-server ", ""},
		"version with one dash":     {[]string{"-version"}, 0, "imds-server ", ""},
		"help":                      {[]string{"--help"}, 0, "Usage:", ""},
		"help, short":               {[]string{"-h"}, 0, "Usage:", ""},
		"help of probe":             {[]string{"probe", "-h"}, 0, "Usage:", ""},
		"unknown option":            {[]string{"--verbose"}, 2, "", "-verbose"},
		"unknown command":           {[]string{"start"}, 2, "", `"start"`},
		"serve with an argument":    {[]string{"serve", "now"}, 2, "", `["now"]`},
		"probe with an argument":    {[]string{"probe", "now"}, 2, "", `["now"]`},
		"probe with unknown option": {[]string{"probe", "--dead"}, 2, "", "-dead"},
		"agent-metrics, argument":   {[]string{"agent-metrics", "now"}, 2, "", `["now"]`},
		"agent-metrics, nothing":    {[]string{"agent-metrics"}, 1, "", "IMDS_METRICS_ADDRESS"},
		"no environment":            {nil, 1, "", "IMDS_NAMESPACE"},
		"serve, no environment":     {[]string{"serve"}, 1, "", "IMDS_NAMESPACE"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			noEnv := func(string) (string, bool) { return "", false }
			if status := run(t.Context(), test.args, noEnv, &stdout, &stderr); status != test.status {
				t.Errorf("got status %d, want %d", status, test.status)
			}
			for _, output := range []struct{ name, got, want string }{
				{"stdout", stdout.String(), test.stdout}, {"stderr", stderr.String(), test.stderr},
			} {
				if !strings.Contains(output.got, output.want) || output.want == "" && output.got != "" {
					t.Errorf("got %s %q, want %q", output.name, output.got, output.want)
				}
			}
		})
	}
}

func TestWrongEnvironmentStopsTheProbe(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := func(name string) (string, bool) { return "nowhere", name == "IMDS_LISTEN_ADDR" }
	status := run(t.Context(), []string{"probe"}, env, &stdout, &stderr)
	if status != 1 || !strings.Contains(stderr.String(), `IMDS_LISTEN_ADDR="nowhere"`) {
		t.Errorf("got status %d and %q", status, &stderr)
	}
}

func TestVersionOfTheBuild(t *testing.T) {
	defer func(before string) { version = before }(version)
	version = "v1.2.3"
	if got := buildVersion(); got != "v1.2.3" {
		t.Errorf("got %q, want what the build set", got)
	}
	version = ""
	if got := buildVersion(); got == "" {
		t.Error("without it there is no version at all")
	}
}

func TestManualNamesEveryVariable(t *testing.T) {
	var names []string
	note := func(name string) (string, bool) {
		names = append(names, name)
		return "", false
	}
	config.FromEnvironment(note)
	config.AgentMetricsFromEnvironment(note)
	if len(names) != 18 {
		t.Errorf("the server reads %d variables: %q", len(names), names)
	}
	for _, name := range names {
		if !strings.Contains(usage, "\n  "+name+" ") {
			t.Errorf("the manual has no line for %s", name)
		}
	}
	for _, value := range []string{config.DefaultTokenPath, config.DefaultListenAddr, config.DefaultListenDevice} {
		if !strings.Contains(usage, "default "+value+")") {
			t.Errorf("the manual names not the default %s", value)
		}
	}
	for line := range strings.Lines(usage) {
		if len(line) > 81 {
			t.Errorf("a line of the manual is longer than 80: %s", line)
		}
	}
}
