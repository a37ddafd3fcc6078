package hand

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// patience is far more than anything here takes.
const patience = 10 * time.Second

// serve plays the guest at the other end of a port, and returns when the client knows that it has booted.
func serve(t *testing.T, o Operations) (*Client, net.Conn) {
	t.Helper()
	testEnd, guestEnd := net.Pipe()
	c := NewClient(testEnd)
	t.Cleanup(c.Close)
	served := make(chan struct{})
	go func() { defer close(served); Serve(guestEnd, o) }()
	t.Cleanup(func() { guestEnd.Close(); <-served })
	if err := c.AwaitBoot(limit(t), 0); err != nil {
		t.Fatal(err)
	}
	return c, guestEnd
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestRequestsAreAnsweredOutOfOrder(t *testing.T) {
	release := make(chan struct{})
	c, _ := serve(t, Operations{
		Run: func(_ context.Context, r Run) (Ran, error) { <-release; return Ran{Output: r.Command}, nil },
		Get: func(_ context.Context, g Get) (Got, error) { return Got{Body: g.URL}, nil },
	})
	ran := make(chan string)
	go func() { output, _ := c.Shell(limit(t), "slow"); ran <- output }()
	got, err := c.Get(limit(t), Get{URL: "quick"})
	if err != nil || got.Body != "quick" {
		t.Fatalf("got %+v, %v", got, err)
	}
	close(release)
	if output := <-ran; output != "slow" {
		t.Errorf("output %q, want %q", output, "slow")
	}
}

func TestShellCommandThatFailsIsAnErrorWithItsOutput(t *testing.T) {
	c, _ := serve(t, Operations{Run: func(context.Context, Run) (Ran, error) { return Ran{Exit: 3, Output: "no such file\n"}, nil }})
	_, err := c.Shell(limit(t), "cat x")
	if err == nil || err.Error() != "guest: cat x: exit status 3: no such file" {
		t.Errorf("error %v", err)
	}
}

func TestTaskBeginsGoesOnAndStops(t *testing.T) {
	c, _ := serve(t, Operations{Sniff: func(ctx context.Context, s Sniff, begun func()) (Sniffed, error) {
		begun()
		<-ctx.Done()
		return Sniffed{Missed: s.Limit}, nil
	}})
	task, err := c.Sniff(limit(t), Sniff{Limit: 7})
	if err != nil {
		t.Fatal(err)
	}
	sniffed, err := task.Stop(limit(t))
	if err != nil || sniffed.Missed != 7 {
		t.Errorf("sniffed %+v, %v", sniffed, err)
	}
}

func TestTaskThatCannotBeginSaysWhy(t *testing.T) {
	c, _ := serve(t, Operations{Send: func(context.Context, Send, func()) (Sent, error) {
		return Sent{}, errors.New("no interface eth7")
	}})
	_, err := c.Send(limit(t), Send{})
	if err == nil || !strings.Contains(err.Error(), "no interface eth7") {
		t.Errorf("error %v", err)
	}
}

func TestTaskThatEndsByItselfIsWaitedForOrStopped(t *testing.T) {
	c, _ := serve(t, Operations{Send: func(_ context.Context, s Send, begun func()) (Sent, error) {
		begun()
		return Sent{Frames: s.Rounds}, nil
	}})
	for _, end := range []func(*Task[Sent]) (Sent, error){
		func(task *Task[Sent]) (Sent, error) { return task.Wait(limit(t)) },
		func(task *Task[Sent]) (Sent, error) { return task.Stop(limit(t)) },
	} {
		task, err := c.Send(limit(t), Send{Rounds: 5})
		if err != nil {
			t.Fatal(err)
		}
		if sent, err := end(task); err != nil || sent.Frames != 5 {
			t.Errorf("sent %+v, %v", sent, err)
		}
	}
}

func TestRebootFailsWhatIsGoingOnAndTheNextRequestWorks(t *testing.T) {
	running := make(chan struct{})
	c, guest := serve(t, Operations{
		Run: func(ctx context.Context, _ Run) (Ran, error) { close(running); <-ctx.Done(); return Ran{}, ctx.Err() },
		Get: func(context.Context, Get) (Got, error) { return Got{Status: 200}, nil },
	})
	failed := make(chan error)
	go func() {
		_, err := c.Run(limit(t), Run{})
		failed <- err
	}()
	<-running
	// A boot in the middle of a reply.
	if _, err := io.WriteString(guest, `{"id":1,"resu`+"\n"+`{"id":0,"op":"booted"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || !strings.Contains(err.Error(), errRebooted.Error()) {
		t.Errorf("error %v, want %v", err, errRebooted)
	}
	if err := c.AwaitBoot(limit(t), 1); err != nil {
		t.Error(err)
	}
	if got, err := c.Get(limit(t), Get{}); err != nil || got.Status != 200 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReplyThatBeginsAtOnePortEndsAtTheNext(t *testing.T) {
	firstEnd, source := net.Pipe()
	c := NewClient(firstEnd)
	defer c.Close()
	type reply struct {
		got Got
		err error
	}
	replied := make(chan reply)
	go func() {
		got, err := c.Get(limit(t), Get{URL: "x"})
		replied <- reply{got, err}
	}()
	var request message
	if err := json.NewDecoder(source).Decode(&request); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(source, `{"id":1,"result":{"sta`); err != nil {
		t.Fatal(err)
	}
	secondEnd, target := net.Pipe()
	defer target.Close()
	c.Move(secondEnd)
	source.Close()
	if _, err := io.WriteString(target, `tus":204}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if r := <-replied; r.err != nil || r.got.Status != 204 {
		t.Errorf("got %+v", r)
	}
}

func TestCloseFailsWhatIsGoingOn(t *testing.T) {
	c, _ := serve(t, Operations{Ask: func(ctx context.Context, _ Ask, begun func()) (Asked, error) {
		begun()
		<-ctx.Done()
		return Asked{}, nil
	}})
	task, err := c.Ask(limit(t), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := task.Wait(limit(t)); err == nil {
		t.Error("a task of a closed client has a result")
	}
	if _, err := c.Get(limit(t), Get{}); err == nil {
		t.Error("a closed client has an answer")
	}
	if err := c.AwaitBoot(limit(t), 1); err == nil {
		t.Error("a closed client sees a boot")
	}
}
