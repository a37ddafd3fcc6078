package main

import (
	"io"
	"log/slog"
	"time"
)

// maxLines bounds the log: whoever can reach the webhook can make it write, and the node's disk is everybody's.
// A thousand VMs that start at once stay below.
const (
	maxLines   = 2000
	linePeriod = 10 * time.Second
)

// limitedLines takes one line at each Write, as slog does one after another. It leaves out what is beyond
// maxLines in linePeriod, and then says how much.
type limitedLines struct {
	io.Writer
	since time.Time
	lines int
}

func (l *limitedLines) Write(line []byte) (int, error) {
	if now := time.Now(); now.Sub(l.since) >= linePeriod {
		if left := l.lines - maxLines; left > 0 {
			slog.New(slog.NewTextHandler(l.Writer, nil)).Warn("lines left out of the log", "lines", left, "period", linePeriod)
		}
		l.since, l.lines = now, 0
	}
	if l.lines++; l.lines > maxLines {
		return len(line), nil
	}
	return l.Writer.Write(line)
}
