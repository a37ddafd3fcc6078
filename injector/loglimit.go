package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxLines bounds the log: whoever can reach the webhook can make it write, and
// the node's disk is everybody's. A thousand VMs that start at once stay below.
const (
	maxLines   = 2000
	linePeriod = 10 * time.Second
)

// limitedLog is a slog.Handler that leaves out what is beyond maxLines in
// linePeriod, and then says how much.
type limitedLog struct {
	slog.Handler
	*lineCount
}

type lineCount struct {
	mu    sync.Mutex
	since time.Time
	lines int
}

func newLimitedLog(handler slog.Handler) limitedLog {
	return limitedLog{handler, new(lineCount)}
}

// Handle writes the record, or counts it.
func (l limitedLog) Handle(ctx context.Context, record slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if record.Time.Sub(l.since) >= linePeriod {
		if left := l.lines - maxLines; left > 0 {
			note := slog.NewRecord(record.Time, slog.LevelWarn, "lines left out of the log", 0)
			note.Add("lines", left, "period", linePeriod)
			if err := l.Handler.Handle(ctx, note); err != nil {
				return err
			}
		}
		l.since, l.lines = record.Time, 0
	}
	if l.lines++; l.lines > maxLines {
		return nil
	}
	return l.Handler.Handle(ctx, record)
}

// WithAttrs and WithGroup share the count.
func (l limitedLog) WithAttrs(attributes []slog.Attr) slog.Handler {
	return limitedLog{l.Handler.WithAttrs(attributes), l.lineCount}
}

// WithGroup is WithAttrs for a group.
func (l limitedLog) WithGroup(name string) slog.Handler {
	return limitedLog{l.Handler.WithGroup(name), l.lineCount}
}
