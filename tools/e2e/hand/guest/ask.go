package main

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// mostLosses is how many losses a report holds.
const mostLosses = 1000

// attempt is one request of many. Times are since the begin of the asking.
type attempt struct {
	begin, end time.Duration
	got        hand.Got
}

// ask asks at a rate until ctx ends, and waits for the last answers.
func ask(ctx context.Context, a hand.Ask, begun func()) (hand.Asked, error) {
	if a.Rate < 1 || a.Rate > 10000 {
		return hand.Asked{}, errors.New("the rate is not between 1 and 10000 requests in a second")
	}
	if _, err := http.NewRequest(a.Method, a.URL, nil); err != nil {
		return hand.Asked{}, err
	}
	var mu sync.Mutex
	var attempts []attempt
	var underway sync.WaitGroup
	request, start := func() (hand.Got, error) { return get(context.Background(), a.Get) }, underway.Go
	if a.Keep {
		connection := new(kept)
		defer connection.close()
		request = func() (hand.Got, error) { return connection.get(a.Get) }
		a.InTurn = true
	}
	if a.InTurn {
		start = func(try func()) { try() }
	}
	begin := time.Now()
	begun()
	try := func() {
		this := attempt{begin: time.Since(begin)}
		got, err := request() // its own limit ends it
		this.end, this.got = time.Since(begin), got
		if err != nil {
			this.got = hand.Got{Failure: hand.Unknown, Detail: err.Error()}
		}
		mu.Lock()
		defer mu.Unlock()
		attempts = append(attempts, this)
	}
	pace := time.NewTicker(time.Second / time.Duration(a.Rate))
	defer pace.Stop()
	for ctx.Err() == nil {
		start(try)
		select {
		case <-pace.C:
		case <-ctx.Done():
		}
	}
	stopped := time.Since(begin)
	underway.Wait()
	asked := report(attempts, stopped, time.Since(begin))
	asked.Late = late(attempts, a)
	return asked, nil
}

// report sums up attempts in the order of their ends. The asking was stopped at a time, and took until the last of
// them had ended.
func report(attempts []attempt, stopped, took time.Duration) hand.Asked {
	asked := hand.Asked{Sent: len(attempts), Failures: map[hand.Failure]int{}, Took: took}
	var last time.Duration // good answer
	gap := func(until time.Duration) {
		if until-last > asked.Gap {
			asked.Gap, asked.GapBegin = until-last, last
		}
		last = until
	}
	for _, t := range attempts {
		failure, detail := t.got.Failure, t.got.Detail
		if failure == "" && t.got.Status != http.StatusOK {
			failure, detail = hand.BadStatus, t.got.Body
		}
		if failure == "" {
			asked.Answered++
			gap(min(t.end, stopped))
			continue
		}
		asked.Failures[failure]++
		if len(asked.Lost) < mostLosses {
			asked.Lost = append(asked.Lost, hand.Loss{Begin: t.begin, End: t.end, Failure: failure, Detail: detail})
		}
	}
	gap(stopped)
	asked.Bodies = bodies(attempts)
	return asked
}

// bodies puts answers that follow each other, by their requests' begins, and are the same, together.
func bodies(attempts []attempt) []hand.Body {
	var runs []hand.Body
	for _, t := range inOrder(attempts) {
		if t.got.Failure != "" || t.got.Status != http.StatusOK {
			continue
		}
		if len(runs) == 0 || runs[len(runs)-1].Text != t.got.Body {
			runs = append(runs, hand.Body{Text: t.got.Body, First: t.begin})
		}
		run := &runs[len(runs)-1]
		run.Count++
		run.Last = max(run.Last, t.end)
	}
	return runs
}

// late is how much later than at its time an attempt began at most.
func late(attempts []attempt, a hand.Ask) (most time.Duration) {
	begun := inOrder(attempts)
	for i := 1; i < len(begun); i++ {
		due := begun[i-1].begin + time.Second/time.Duration(a.Rate)
		if a.InTurn {
			due = max(due, begun[i-1].end)
		}
		most = max(most, begun[i].begin-due)
	}
	return most
}

// inOrder sorts attempts by their begins.
func inOrder(attempts []attempt) []attempt {
	return slices.SortedStableFunc(slices.Values(attempts), func(a, b attempt) int { return cmp.Compare(a.begin, b.begin) })
}
