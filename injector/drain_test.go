package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// held is a timing whose withdrawal ends when the test says so, at its own end
// at the latest.
func held(shutdown time.Duration) (timing, func()) {
	release := make(chan time.Time)
	timing := productionTiming
	timing.withdrawal = func() <-chan time.Time { return release }
	timing.shutdown = shutdown
	return timing, sync.OnceFunc(func() { close(release) })
}

func TestDrainAnswersEveryRequest(t *testing.T) {
	timing, withdrawn := held(10 * time.Second)
	defer withdrawn()
	w := startWebhook(t, declaredPatches, timing)

	// One request is half sent when the end is announced.
	body := reviewOf(t, podRequest(fixture(t, "masquerade")))
	half, rest := io.Pipe()
	answered := make(chan error, 1)
	go func() {
		request, err := http.NewRequest(http.MethodPost, w.url+"/mutate-pod", half)
		if err != nil {
			answered <- err
			return
		}
		request.Header.Set("Content-Type", "application/json")
		request.ContentLength = int64(len(body))
		response, err := w.client().Do(request)
		if err == nil {
			defer response.Body.Close()
			var answer []byte
			if answer, err = io.ReadAll(response.Body); err == nil && !bytes.Contains(answer, []byte(`"allowed":true`)) {
				t.Errorf("answer: %s", answer)
			}
		}
		answered <- err
	}()
	if _, err := rest.Write(body[:len(body)/2]); err != nil {
		t.Fatal(err)
	}

	w.terminate()
	w.log.wait(t, "draining")
	if status, reason := w.ready(); status != http.StatusServiceUnavailable || reason != "draining\n" {
		t.Errorf("/readyz: %d %s", status, reason)
	}
	// The API server is still sent here: on old connections and new ones.
	for range 3 {
		if response := w.review("/mutate-pod", podRequest(fixture(t, "masquerade"))); response.Patch == nil {
			t.Error("a request while draining got no patch")
		}
	}

	withdrawn()
	w.log.wait(t, "no new connections")
	select {
	case status := <-w.exit:
		t.Fatalf("ended with %d before the request under way was answered", status)
	default:
	}
	if _, err := rest.Write(body[len(body)/2:]); err != nil {
		t.Fatal(err)
	}
	rest.Close()
	if err := <-answered; err != nil {
		t.Errorf("the request under way failed: %v", err)
	}
	if status := <-w.exit; status != 0 {
		t.Errorf("exit status %d:\n%s", status, w.log)
	}
}

func TestDrainDoesNotWaitForeverForASlowClient(t *testing.T) {
	timing, withdrawn := held(time.Millisecond)
	defer withdrawn()
	w := startWebhook(t, declaredPatches, timing)
	connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	// The server asks for the body: the request has reached the handler.
	io.WriteString(connection, "POST /mutate-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
	if _, err := connection.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	w.terminate()
	withdrawn()
	if status := <-w.exit; status != 1 {
		t.Errorf("exit status %d", status)
	}
	w.log.wait(t, "requests were still under way")
}

// A client that is slower than the limits is cut off, and holds up nobody
// meanwhile.
func TestSlowClientIsCutOff(t *testing.T) {
	timing := immediately
	timing.arrival, timing.answer = time.Second, 2*time.Second
	w := startWebhook(t, declaredPatches, timing)
	for name, start := range map[string]string{
		"header": "POST /mutate-pod HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"body":   "POST /mutate-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca})
			if err != nil {
				t.Fatal(err)
			}
			defer connection.Close()
			if _, err := io.WriteString(connection, start); err != nil {
				t.Fatal(err)
			}
			if response := w.review("/mutate-pod", podRequest(fixture(t, "masquerade"))); response.Patch == nil {
				t.Error("another client got no patch")
			}
			if err := connection.SetReadDeadline(time.Now().Add(productionTiming.answer)); err != nil {
				t.Fatal(err)
			}
			// An answer or none: what counts is that the connection ends.
			if _, err := io.Copy(io.Discard, connection); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open after the time limit")
			}
		})
	}
}

// A connection that is in use when the end is announced is closed with its next
// answer. Were it kept, a request could be on its way when the process ends.
func TestDrainEndsTheConnectionsInUse(t *testing.T) {
	timing, withdrawn := held(time.Second)
	defer withdrawn()
	w := startWebhook(t, declaredPatches, timing)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca}}}
	defer client.CloseIdleConnections()
	ends := func() bool {
		response, err := client.Post(w.url+"/mutate-pod", "application/json", bytes.NewReader(reviewOf(t, podRequest(fixture(t, "masquerade")))))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		return response.Close
	}
	if ends() {
		t.Error("a connection ends with its first answer")
	}
	w.terminate()
	w.log.wait(t, "draining")
	if !ends() {
		t.Error("a connection is kept while draining")
	}
}
