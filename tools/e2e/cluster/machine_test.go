package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRuncIsAskedForSeccomp(t *testing.T) {
	for _, test := range []struct {
		name   string
		script string
		want   string // in the error; empty: none
	}{
		{"with seccomp", `echo '{"linux":{"seccomp":{"enabled":true}}}'`, ""},
		{"without seccomp", `echo '{"linux":{"seccomp":{"enabled":false}}}'`, "apt-get install"},
		{"without a word on seccomp", `echo '{"linux":{}}'`, "apt-get install"},
		{"too old to tell its features", `exit 1`, "runc 1.1 or newer"},
		{"answer that is not JSON", `echo features`, "features"},
	} {
		t.Run(test.name, func(t *testing.T) {
			runc := filepath.Join(t.TempDir(), "runc")
			if err := os.WriteFile(runc, fmt.Appendf(nil, "#!/bin/sh\n%s\n", test.script), 0o755); err != nil {
				t.Fatal(err)
			}
			err := checkSeccomp(runc)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			expectError(t, err, runc, test.want)
		})
	}
}

func TestOrdinaryUserIsToldThatRootIsNeeded(t *testing.T) {
	if err := checkUser(1000); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("error %v, want one that names root", err)
	}
	if err := checkUser(0); err != nil {
		t.Errorf("root is refused: %v", err)
	}
}
