package refusals

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestOneLineAMinuteForEachKind(t *testing.T) {
	var output bytes.Buffer
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	log := NewLog(slog.New(slog.NewTextHandler(&output, nil)), func() time.Time { return clock })
	lines := func() []string {
		defer output.Reset()
		return strings.Split(strings.TrimSpace(output.String()), "\n")
	}

	for range 1000 {
		log.Add("foreign-host", "remote", "10.0.2.2:1234")
		log.Add("not-found", "remote", "10.0.2.2:1234")
	}
	first := lines()
	if len(first) != 2 {
		t.Fatalf("got %d lines for two kinds, want 2: %q", len(first), first)
	}
	for _, want := range []string{"level=WARN", "msg=refused", "kind=foreign-host", "remote=10.0.2.2:1234", "suppressed=0"} {
		if !strings.Contains(first[0], want) {
			t.Errorf("%q is not in %q", want, first[0])
		}
	}

	clock = clock.Add(time.Minute - 1)
	log.Add("foreign-host", "remote", "10.0.2.2:1234")
	if early := lines(); early[0] != "" {
		t.Errorf("a second line came within a minute: %q", early)
	}

	clock = clock.Add(1)
	log.Add("foreign-host", "remote", "10.0.2.2:1234")
	if later := lines(); len(later) != 1 || !strings.Contains(later[0], "suppressed=1000") {
		t.Errorf("got %q, want one line with suppressed=1000", later)
	}
}
