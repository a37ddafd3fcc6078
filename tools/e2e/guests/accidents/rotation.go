package accidents

import (
	"context"
	"slices"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// A token is replaced every second for five minutes. In truth it is after less and after more than a second in
// turn: the server trusts the times of a file that is older than that.
var rotationPauses = []time.Duration{600 * time.Millisecond, 1400 * time.Millisecond}

const (
	rotations = 300
	// rotationRate is how often the guest asks, in a second.
	rotationRate = 25
)

// tokenRotated is a token that is replaced much more often than the kubelet does, in the kubelet's way. Clocks are
// not compared: a request that the guest is told to make when a token has been replaced begins after that; and of
// requests of which each begins when the one before has ended, none may be answered with an older token.
func tokenRotated(s *stage.Stage) *alone {
	r := &rotation{}
	row := measuredAlone("token-rotated", func(t *suite.T) *measured {
		story := begin(t, s, stage.Options{Name: "rotated"})
		return r.measure(story)
	})
	row.columns = append(row.columns,
		suite.Check{Name: "fresh", Proves: "tokens that the first request after they were put in place has got: all", Run: r.fresh},
		suite.Check{Name: "order", Proves: "tokens seen by a guest that asks over and over, of those issued: all whole, in their order", Run: r.order},
	)
	return row
}

// rotation is what the guest has seen of the tokens.
type rotation struct {
	issued []string
	stale  []int // numbers of the tokens that the first request after them has not got
	seen   []hand.Body
}

// bare asks for the token alone, as a file would hold it.
var bare = hand.Get{URL: stage.MetadataURL + "/v1/token", Header: map[string]string{"Accept": "application/jwt"}}

func (r *rotation) measure(s *story) *measured {
	m := &measured{hale: true, anyGap: true}
	r.issued = append(r.issued, s.vm.RotateToken())
	told := time.Now()
	task, err := s.vm.Guest.Hand.Ask(s.t.Context(), hand.Ask{Get: bare, Rate: rotationRate, InTurn: true})
	s.t.Check(err)
	for n := range rotations {
		next := time.After(rotationPauses[n%len(rotationPauses)])
		got := r.ask(s)
		if got.Body != r.issued[n] {
			r.stale = append(r.stale, n)
		}
		select {
		case <-next:
		case <-s.t.Context().Done():
			s.t.Fatalf("%v", context.Cause(s.t.Context()))
		}
		r.issued = append(r.issued, s.vm.RotateToken())
	}
	if got := r.ask(s); got.Body != r.issued[rotations] {
		r.stale = append(r.stale, rotations)
	}
	s.letAsk(time.Second)
	m.asked = asked{s.vm.Stop(task), told, told}
	m.lost = m.asked.Lost
	r.seen = m.asked.Bodies
	m.leak = s.leaks()
	m.evidence = s.evidence()
	return m
}

// ask has the guest ask now.
func (r *rotation) ask(s *story) hand.Got {
	ctx, cancel := context.WithTimeout(s.t.Context(), stage.Patience)
	defer cancel()
	got, err := s.vm.Guest.Hand.Get(ctx, bare)
	s.t.Check(err)
	return got
}

func (r *rotation) fresh(t *suite.T) {
	if len(r.issued) == 0 {
		t.Fatalf("no token was replaced")
	}
	if len(r.stale) > 0 {
		t.Errorf("after the tokens %v were put in place, the guest was given others", r.stale)
	}
	t.Figure("%d of %d", len(r.issued)-len(r.stale), len(r.issued))
}

func (r *rotation) order(t *suite.T) {
	last := -1
	for n, body := range r.seen {
		number := slices.Index(r.issued, body.Text)
		switch {
		case number < 0:
			t.Errorf("answer %d is no token that was issued: %d bytes", n, len(body.Text))
		case number <= last:
			t.Errorf("answer %d is the token %d, after the token %d", n, number, last)
		}
		last = max(last, number)
	}
	if len(r.seen) == 0 {
		t.Fatalf("no token was seen")
	}
	t.Figure("%d of %d", len(r.seen), len(r.issued))
}
