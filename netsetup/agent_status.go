package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"sync"
	"time"
)

// statusEvery is the least time between two writes of the status file.
const statusEvery = time.Second

// status counts the pods in each state, for a file and the log.
type status struct {
	file   string // empty: none
	report reporter

	mu      sync.Mutex
	pods    map[string]progress // by UID
	due     bool                // to be written
	written time.Time
	writing sync.Mutex
}

// counts is what the file holds.
type counts struct {
	Wired   int            `json:"wired"`
	Waiting map[string]int `json:"waiting"` // by reason
	Failed  map[string]int `json:"failed"`
}

// set notes the state of a pod; nil: it is gone. It has the file written as soon as
// that may be.
func (s *status) set(uid string, state *progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state != nil {
		s.pods[uid] = *state
	} else {
		delete(s.pods, uid)
	}
	if !s.due {
		s.due = true
		time.AfterFunc(time.Until(s.written.Add(statusEvery)), s.write)
	}
}

func (s *status) write() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	s.due, s.written = false, time.Now()
	now := s.count()
	s.mu.Unlock()
	s.report.owed = false
	s.report.write(slog.LevelInfo, "pods", "wired", now.Wired, "waiting", now.Waiting, "failed", now.Failed)
	if s.report.owed { // the log shall not end with what is no longer so
		time.AfterFunc(lineEvery, s.write)
	}
	if err := s.replace(now); err != nil {
		s.report.tellOf("the status file is not written", err)
	}
}

func (s *status) count() counts {
	now := counts{Waiting: map[string]int{}, Failed: map[string]int{}}
	for _, pod := range s.pods {
		switch pod.State {
		case stateWired:
			now.Wired++
		case stateWaiting:
			add(now.Waiting, pod.Reason)
		case stateFailed:
			add(now.Failed, pod.Reason)
		}
	}
	return now
}

// of counts the pods that have a state for a reason.
func (s *status) of(state, class string) (pods int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pod := range s.pods {
		if pod.State == state && pod.class == class {
			pods++
		}
	}
	return pods
}

// add counts a pod, under "other" when there are many reasons.
func add(to map[string]int, reason string) {
	const mostReasons, longestReason = 10, 200
	reason = reason[:min(len(reason), longestReason)]
	if _, known := to[reason]; !known && len(to) >= mostReasons {
		reason = "other"
	}
	to[reason]++
}

// replace writes the file as a whole, under its name only when it is complete.
func (s *status) replace(now counts) error {
	if s.file == "" {
		return nil
	}
	content, err := json.Marshal(now)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file+".new", append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(s.file+".new", s.file)
}
