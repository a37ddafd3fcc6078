package accidents

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

const (
	// rate is how often the guest asks, in a second.
	rate = 10
	// healLimit is how long an accident may be felt.
	healLimit = time.Second
	// patience is how long it may last until it is given up.
	patience = 30 * time.Second
)

// measured is what came of an accident.
type measured struct {
	err      error         // why it is not measured
	heal     time.Duration // by this machine's clock
	asked    asked
	lost     []hand.Loss // those that nothing excuses
	excused  int
	leak     []string
	notes    []string // figures about it
	evidence string   // for whoever has to find out why
	slowest  string   // to heal, of many accidents
	hale     bool     // nothing had to heal
	// anyGap: the gap says nothing of the project, because the guest had no NIC for a while, or asked in turn, where
	// it shows how long a busy machine held the guest up.
	anyGap bool
}

// measure makes an accident happen to a guest that asks before, meanwhile and after.
func (s *story) measure(a accident) *measured {
	url := tokenURL
	if a.ipv6 {
		url = tokenURL6
	}
	asking := s.ask(url, usualPatience)
	s.letAsk(500 * time.Millisecond)
	h := s.happen(a)
	s.letAsk(time.Second)
	m := &measured{err: h.err, heal: h.heal, asked: asking.stop(), anyGap: a.unplugged}
	m.lost, m.excused = m.asked.judge(h.excuses)
	m.leak = s.leaks()
	m.evidence = s.evidence()
	return m
}

// letAsk lets the guest go on asking for a while, by the guest's clock.
func (s *story) letAsk(d time.Duration) { s.vm.Shell(fmt.Sprintf("usleep %d", d.Microseconds())) }

// happened is an accident that is over.
type happened struct {
	err     error
	heal    time.Duration
	excuses *windows // in which requests may be lost
}

// happen makes an accident happen and waits until all is as it was.
func (s *story) happen(a accident) happened {
	h := happened{excuses: &windows{}}
	ctx, cancel := context.WithTimeoutCause(s.t.Context(), patience, fmt.Errorf("not healed after %s", patience))
	defer cancel()
	fromInit, fromServer := len(s.vm.Init.Log()), len(s.vm.Server.Log())
	s.changes.mark()
	begin := time.Now()
	if a.unruled {
		s.unruled.open(begin)
	}
	if h.err = a.happen(s); h.err != nil {
		return h
	}
	turn := begin // of the project
	if a.mend != nil {
		s.changes.mark()
		turn = time.Now()
		if h.err = a.mend(s); h.err != nil {
			return h
		}
	}
	if a.initAnew {
		h.err = s.vm.Init.AwaitLogAfter(ctx, fromInit, "msg=wired")
	}
	if a.listensAnew && h.err == nil {
		h.err = s.awaitListening(ctx, fromServer)
	}
	if h.err == nil {
		h.err = s.awaitState(ctx)
	}
	healed := time.Now()
	if !a.ends {
		// On a busy machine the kernel does not return at once to whoever deletes something.
		turn = s.changes.since(turn)
	}
	h.heal = healed.Sub(turn)
	if a.unruled {
		s.unruled.close(healed)
	}
	if a.unplugged {
		s.plugNIC()
		h.excuses.add(window{begin, time.Now(), []hand.Failure{hand.Unreachable, hand.Reset}, true})
	}
	if a.listensAnew {
		h.excuses.add(window{begin, healed, []hand.Failure{hand.Refused, hand.Reset}, !a.ends})
	}
	return h
}

// awaitListening waits until imds-server has said, after a position of its log, that it listens on both addresses.
func (s *story) awaitListening(ctx context.Context, position int) error {
	return errors.Join(
		s.vm.Server.AwaitLogAfter(ctx, position, "msg=listening address=169.254.169.254:80"),
		s.vm.Server.AwaitLogAfter(ctx, position, "msg=listening address=[fe80::a9fe:a9fe"))
}

// awaitState waits until the pod's network is as it was before the first accident.
func (s *story) awaitState(ctx context.Context) error {
	for {
		now, err := readState(s.vm.Net.Pod)
		if err == nil && len(s.before.difference(now)) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			if err == nil {
				err = fmt.Errorf("%q", s.before.difference(now))
			}
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if err != nil {
			continue // it changed while it was read
		}
		select {
		case <-s.changes.happened:
		case <-ctx.Done():
		}
	}
}

// asking is the guest's asking, with what ties its clock to this machine's.
type asking struct {
	story       *story
	task        *hand.Task[hand.Asked]
	told, begun time.Time // it began between
}

// usualPatience is how long the guest waits for an answer: longer than most clients, because it is slow itself.
const usualPatience = 10 * time.Second

// Where the guest asks. It has to say by which NIC, of a link-local address of IPv6.
const (
	tokenURL  = stage.MetadataURL + "/v1/token"
	tokenURL6 = "http://[fe80::a9fe:a9fe%25eth0]/v1/token"
)

// ask has the guest begin to ask, each time with a time limit.
func (s *story) ask(url string, limit time.Duration) *asking {
	told := time.Now()
	task, err := s.vm.Guest.Hand.Ask(s.t.Context(), hand.Ask{Get: hand.Get{URL: url, Limit: limit}, Rate: rate})
	s.t.Check(err)
	return &asking{s, task, told, time.Now()}
}

// asked is the guest's report. It began to ask at some time from earliest to latest, by this machine's clock: between
// its being told to and its saying so, and at least as long before its report came as the asking took.
type asked struct {
	hand.Asked
	earliest, latest time.Time
}

func (a *asking) stop() asked {
	report := a.story.vm.Stop(a.task)
	latest := time.Now().Add(-report.Took)
	switch {
	case latest.Before(a.told):
		latest = a.told
	case latest.After(a.begun):
		latest = a.begun
	}
	return asked{report, a.told, latest}
}

// judge parts the losses into those that nothing excuses, and the number of the others.
func (a asked) judge(excuses *windows) (lost []hand.Loss, excused int) {
	for _, loss := range a.Lost {
		if excuses.excuse(loss.Failure, a.earliest.Add(loss.Begin), a.latest.Add(loss.End)) {
			excused++
		} else {
			lost = append(lost, loss)
		}
	}
	return lost, excused
}
