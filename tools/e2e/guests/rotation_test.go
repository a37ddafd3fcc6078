package guests

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
)

// A token is replaced every second for five minutes. In truth it is after less and after more than a second in
// turn: the server trusts the times of a file that is older than that.
var rotationPauses = []time.Duration{600 * time.Millisecond, 1400 * time.Millisecond}

const (
	rotations = 300
	// rotationRate is how often the guest asks, in a second.
	rotationRate = 25
)

// A token is replaced much more often than the kubelet does, in the kubelet's way. Clocks are not compared: a request
// that the guest is told to make when a token has been replaced begins after that; and of requests of which each begins
// when the one before has ended, none may be answered with an older token.
func TestTokenRotated(t *testing.T) {
	t.Parallel()
	const subject = "accidents/token-rotated"
	var v *accidentVM
	var m *measured
	var r rotation
	if !results.Skipping() {
		v = startAccidentVM(t, vmtest.Options{Name: "rotated"})
		m = r.measure(v)
	}
	m.judge(t, subject, v)
	results.Check(t, subject, "fresh", "tokens that the first request after they were put in place has got: all", r.fresh)
	results.Check(t, subject, "order", "tokens seen by a guest that asks over and over, of those issued: all whole, in their order", r.order)
	checkPod(t, subject, v)
}

// rotation is what the guest has seen of the tokens.
type rotation struct {
	issued []string
	stale  []int // numbers of the tokens that the first request after them has not got
	seen   []guestagent.Body
}

// bare asks for the token alone, as a file would hold it.
var bare = guestagent.Get{URL: vmtest.MetadataURL + "/v1/token", Header: map[string]string{"Accept": "application/jwt"}}

func (r *rotation) measure(v *accidentVM) *measured {
	m := &measured{hale: true, anyGap: true}
	r.issued = append(r.issued, v.RotateToken())
	told := time.Now()
	task, err := v.Guest.Agent.Ask(v.t.Context(), guestagent.Ask{Get: bare, Rate: rotationRate, InTurn: true})
	check(v.t, err)
	for n := range rotations {
		next := time.After(rotationPauses[n%len(rotationPauses)])
		if got := v.Request(bare); got.Body != r.issued[n] {
			r.stale = append(r.stale, n)
		}
		select {
		case <-next:
		case <-v.t.Context().Done():
			v.t.Fatalf("%v", context.Cause(v.t.Context()))
		}
		r.issued = append(r.issued, v.RotateToken())
	}
	if got := v.Request(bare); got.Body != r.issued[rotations] {
		r.stale = append(r.stale, rotations)
	}
	v.letAsk(time.Second)
	m.asked = asked{v.Stop(task), told, told}
	m.lost = m.asked.Lost
	r.seen = m.asked.Bodies
	m.leak = v.leaks()
	return m
}

func (r *rotation) fresh(t *testing.T) {
	if len(r.issued) == 0 {
		t.Fatalf("no token was replaced")
	}
	if len(r.stale) > 0 {
		t.Errorf("after the tokens %v were put in place, the guest was given others", r.stale)
	}
	results.Figure(t, "%d of %d", len(r.issued)-len(r.stale), len(r.issued))
}

func (r *rotation) order(t *testing.T) {
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
	results.Figure(t, "%d of %d", len(r.seen), len(r.issued))
}
