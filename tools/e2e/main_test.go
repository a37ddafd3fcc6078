package main

import (
	"bytes"
	"flag"
	"strings"
	"testing"
)

func TestWrongArgumentsGetTheUsageText(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"start"},
		{"build", "now"},
		{"cluster"},
		{"cluster", "--"},
		{"cluster", "kubectl", "get", "pods"},
		{"check"},
		{"-h"},
		{"-v", "build"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if err := run(t.Context(), args, nil, &stdout, &stderr); err != flag.ErrHelp {
				t.Errorf("error %v, want flag.ErrHelp", err)
			}
			if !strings.Contains(stderr.String(), usage) {
				t.Errorf("standard error holds no usage text: %q", stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("standard output is not empty: %q", stdout.String())
			}
		})
	}
}
