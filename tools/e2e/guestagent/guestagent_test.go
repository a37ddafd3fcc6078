package guestagent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/qemu/qmp"
)

// serve has the operations at the other end of a port, and returns when the client knows that the guest has booted.
func serve(t *testing.T, o Operations) (Client, net.Conn) {
	t.Helper()
	testEnd, guestEnd := net.Pipe()
	c := Client{qmp.New(testEnd)}
	t.Cleanup(c.Close)
	served := make(chan struct{})
	go func() { defer close(served); Serve(guestEnd, o) }()
	t.Cleanup(func() { guestEnd.Close(); <-served })
	if err := c.AwaitBoot(limit(t), 0); err != nil {
		t.Fatal(err)
	}
	return c, guestEnd
}

// limit is far more than anything here takes.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRequestsAreAnsweredOutOfOrder(t *testing.T) {
	release := make(chan struct{})
	c, _ := serve(t, Operations{
		Run: func(r Run) (Ran, error) { <-release; return Ran{Exit: 3, Output: r.Command + "\n"}, nil },
		Get: func(g Get) (Got, error) { return Got{Body: g.URL}, nil },
	})
	ran := make(chan error)
	go func() { _, err := c.Shell(limit(t), "slow"); ran <- err }()
	got, err := c.Get(limit(t), Get{URL: "quick"})
	if err != nil || got.Body != "quick" {
		t.Fatalf("got %+v, %v", got, err)
	}
	close(release)
	if err := <-ran; err == nil || err.Error() != "guest: slow: exit status 3: slow" {
		t.Errorf("error %v", err)
	}
}

func TestTask(t *testing.T) {
	c, _ := serve(t, Operations{
		Sniff: func(ctx context.Context, s Sniff, begun func()) (Sniffed, error) {
			begun()
			<-ctx.Done()
			return Sniffed{Frames: []Frame{{Data: []byte(s.Interface)}}}, nil
		},
		Send: func(_ context.Context, s Send, begun func()) (Sent, error) {
			if s.Interface != "eth0" {
				return Sent{}, errors.New("no interface " + s.Interface)
			}
			begun()
			return Sent{Frames: s.Rounds}, nil
		},
	})
	goesOn, err := c.Sniff(limit(t), Sniff{Interface: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	endsItself, err := c.Send(limit(t), Send{Interface: "eth0", Rounds: 5})
	if err != nil {
		t.Fatal(err)
	}
	if sent, err := endsItself.Wait(limit(t)); err != nil || sent.Frames != 5 {
		t.Errorf("sent %+v, %v", sent, err)
	}
	if sniffed, err := goesOn.Stop(limit(t)); err != nil || string(sniffed.Frames[0].Data) != "eth0" {
		t.Errorf("sniffed %+v, %v", sniffed, err)
	}
	if _, err := c.Send(limit(t), Send{Interface: "eth7"}); err == nil || !strings.Contains(err.Error(), "no interface eth7") {
		t.Errorf("error %v", err)
	}
}

func TestRebootFailsWhatIsGoingOnAndTheNextRequestWorks(t *testing.T) {
	running := make(chan struct{})
	c, guest := serve(t, Operations{
		Run: func(Run) (Ran, error) { close(running); select {} },
		Get: func(Get) (Got, error) { return Got{Status: 200}, nil },
	})
	failed := make(chan error)
	go func() { _, err := c.Run(limit(t), Run{}); failed <- err }()
	<-running
	// A boot in the middle of a reply.
	if _, err := io.WriteString(guest, `{"id":1,"retu`+"\n"+`{"event":"BOOTED"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "booted again") {
		t.Errorf("error %v", err)
	}
	if err := c.AwaitBoot(limit(t), 1); err != nil || c.Boots() != 2 {
		t.Errorf("%d boots, %v", c.Boots(), err)
	}
	if got, err := c.Get(limit(t), Get{}); err != nil || got.Status != 200 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReplyThatBeginsAtOnePortEndsAtTheNext(t *testing.T) {
	firstEnd, source := net.Pipe()
	c := Client{qmp.New(firstEnd)}
	defer c.Close()
	replied := make(chan Got)
	go func() {
		got, _ := c.Get(limit(t), Get{URL: "x"})
		replied <- got
	}()
	var request qmp.Request
	if err := json.NewDecoder(source).Decode(&request); err != nil {
		t.Fatal(err)
	}
	io.WriteString(source, `{"id":1,"return":{"sta`)
	secondEnd, target := net.Pipe()
	defer target.Close()
	c.Move(secondEnd)
	source.Close()
	io.WriteString(target, `tus":204}}`+"\n")
	if got := <-replied; got.Status != 204 {
		t.Errorf("got %+v", got)
	}
}
