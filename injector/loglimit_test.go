package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestLogIsBounded(t *testing.T) {
	var text strings.Builder
	handler := newLimitedLog(slog.NewTextHandler(&text, nil)).WithAttrs([]slog.Attr{slog.String("a", "b")})
	begin := time.Now()
	say := func(after time.Duration) {
		if err := handler.Handle(context.Background(), slog.NewRecord(begin.Add(after), slog.LevelInfo, "line", 0)); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 * maxLines {
		say(time.Second)
	}
	if lines := strings.Count(text.String(), "msg=line"); lines != maxLines {
		t.Errorf("%d lines, want %d", lines, maxLines)
	}
	say(time.Minute)
	if lines := strings.Count(text.String(), "\n"); lines != maxLines+2 || !strings.Contains(text.String(), "lines=8000") {
		t.Errorf("%d lines after a pause, want two more, one with what was left out: %s", lines, text.String()[len(text.String())-300:])
	}
}
