package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
)

const ms = time.Millisecond

func good(begin, end time.Duration, body string) attempt {
	return attempt{begin, end, guestagent.Got{Status: 200, Body: body}}
}

func bad(begin, end time.Duration, got guestagent.Got) attempt { return attempt{begin, end, got} }

func TestReportOfAnAsking(t *testing.T) {
	asked := report([]attempt{
		good(0, 5*ms, "a"),
		good(100*ms, 104*ms, "a"),
		bad(200*ms, 201*ms, guestagent.Got{Failure: guestagent.Refused, Detail: "connection refused"}),
		bad(300*ms, 303*ms, guestagent.Got{Status: 503, Body: "no token"}),
		// Begun before the next, ended after it.
		good(410*ms, 415*ms, "b"),
		good(400*ms, 450*ms, "a"),
		good(500*ms, 505*ms, "a"),
	}, 600*ms, 600*ms)
	want := guestagent.Asked{
		Sent:     7,
		Answered: 5,
		Failures: map[guestagent.Failure]int{guestagent.Refused: 1, guestagent.BadStatus: 1},
		Lost: []guestagent.Loss{
			{Begin: 200 * ms, End: 201 * ms, Failure: guestagent.Refused, Detail: "connection refused"},
			{Begin: 300 * ms, End: 303 * ms, Failure: guestagent.BadStatus, Detail: "no token"},
		},
		Gap:      311 * ms,
		GapBegin: 104 * ms,
		Bodies: []guestagent.Body{
			{Text: "a", Count: 3, First: 0, Last: 450 * ms},
			{Text: "b", Count: 1, First: 410 * ms, Last: 415 * ms},
			{Text: "a", Count: 1, First: 500 * ms, Last: 505 * ms},
		},
		Took: 600 * ms,
	}
	if !reflect.DeepEqual(asked, want) {
		t.Errorf("report\n%+v, want\n%+v", asked, want)
	}
}

func TestGapCountsTheBeginAndTheEnd(t *testing.T) {
	for _, test := range []struct {
		name       string
		attempts   []attempt
		gap, begin time.Duration
	}{
		{"no answer at all", nil, 900 * ms, 0},
		{"a late first answer", []attempt{good(490*ms, 500*ms, ""), good(600*ms, 610*ms, "")}, 500 * ms, 0},
		{"an early last answer", []attempt{good(0, 10*ms, "")}, 890 * ms, 10 * ms},
		{"an answer after the asking was stopped", []attempt{good(0, 500*ms, ""), good(800*ms, 2500*ms, "")}, 500 * ms, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := report(test.attempts, 900*ms, 10*time.Second)
			if asked.Gap != test.gap || asked.GapBegin != test.begin {
				t.Errorf("gap of %v from %v on, want %v from %v on", asked.Gap, asked.GapBegin, test.gap, test.begin)
			}
		})
	}
}

func TestHowLateTheGuestAsked(t *testing.T) {
	attempts := []attempt{
		good(0, 5*ms, ""),
		good(100*ms, 350*ms, ""),
		good(380*ms, 385*ms, ""),
		good(470*ms, 475*ms, ""),
	}
	for _, c := range []struct {
		name string
		ask  guestagent.Ask
		want time.Duration
	}{
		{"each at its time", guestagent.Ask{Rate: 10}, 180 * ms},
		{"in turn", guestagent.Ask{Rate: 10, InTurn: true}, 30 * ms},
	} {
		if got := late(attempts, c.ask); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := late(nil, guestagent.Ask{Rate: 10}); got != 0 {
		t.Errorf("nobody asked: %s", got)
	}
}

func TestKeepsAConnectionForAsLongAsItLasts(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()

	connection := new(kept)
	defer connection.close()
	ask := func() guestagent.Got {
		got, err := connection.get(guestagent.Get{URL: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 3 {
		if got := ask(); got.Status != http.StatusOK {
			t.Errorf("got %+v", got)
		}
	}
	server.CloseClientConnections()
	if got := ask(); got.Failure != guestagent.Reset {
		t.Errorf("on a connection that the server has closed: %+v", got)
	}
	if got := ask(); got.Status != http.StatusOK {
		t.Errorf("afterwards: %+v", got)
	}
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}
