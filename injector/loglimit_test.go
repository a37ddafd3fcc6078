package main

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		log := slog.New(slog.NewTextHandler(&limitedLines{Writer: &text, most: maxLines}, nil)).With("a", "b")
		for range 5 * maxLines {
			log.Info("line")
		}
		if lines := strings.Count(text.String(), "msg=line"); lines != maxLines {
			t.Errorf("%d lines, want %d", lines, maxLines)
		}
		time.Sleep(time.Minute)
		log.Info("line")
		if lines := strings.Count(text.String(), "\n"); lines != maxLines+2 || !strings.Contains(text.String(), "lines=8000") {
			t.Errorf("%d lines after a pause, want two more, one with what was left out: %s", lines, text.String()[len(text.String())-300:])
		}
	})
}
