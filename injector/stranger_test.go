package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/patchset"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

// stranger is a connection of HTTP/2 whose frames a neighbour has made by hand (RFC 9113).
type stranger struct {
	*tls.Conn
	next uint32 // stream
}

const (
	dataFrame, headersFrame, settingsFrame, unknownFrame = 0x0, 0x1, 0x4, 0xf0
	endStream, endHeaders                                = 0x1, 0x4
)

// openStranger connects from one of many addresses.
func openStranger(t testing.TB, w *webhook, host byte, settings ...byte) *stranger {
	t.Helper()
	s, err := dialStranger(w, host, settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.NetConn().Close() })
	return s
}

func dialStranger(w *webhook, host byte, settings ...byte) (*stranger, error) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, host)}}
	conn, err := tls.DialWithDialer(dialer, "tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	s := &stranger{conn, 1}
	io.WriteString(s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	s.frame(settingsFrame, 0, 0, settings)
	return s, nil
}

func (s *stranger) frame(kind, flags byte, stream uint32, payload []byte) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	head = binary.BigEndian.AppendUint32(append(head, flags), stream)
	_, err := s.Write(append(head, payload...))
	return err
}

// request begins a request with a body of that length. The block of fields has no table and no Huffman code (RFC 7541).
func (s *stranger) request(method, path string, length int) (stream uint32) {
	var block []byte
	for _, field := range [][2]string{{":method", method}, {":scheme", "https"}, {":path", path}, {":authority", "a"},
		{"content-type", "application/json"}, {"content-length", fmt.Sprint(length)}} {
		block = append(append(block, 0, byte(len(field[0]))), field[0]...)
		block = append(append(block, byte(len(field[1]))), field[1]...)
	}
	stream, s.next = s.next, s.next+2
	flags := byte(endHeaders)
	if length == 0 {
		flags |= endStream
	}
	s.frame(headersFrame, flags, stream, block)
	return stream
}

// honest asks every few milliseconds as the API server does, by one connection, until stop returns what came of it.
func honest(t *testing.T, w *webhook, client *http.Client) (stop func() (took []time.Duration, failed []string)) {
	t.Helper()
	body := reviewOf(t, podRequest(fixture(t, "masquerade")))
	var mu sync.Mutex
	var took []time.Duration
	var failed []string
	ask := func() {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // of the manifests
		defer cancel()
		request, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/mutate-pod", bytes.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = append(failed, err.Error())
		} else if response.StatusCode != http.StatusOK {
			failed = append(failed, response.Status)
		}
		took = append(took, time.Since(began))
	}
	ask()
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			asking.Go(ask)
		}
	})
	return func() ([]time.Duration, []string) {
		cancel()
		asking.Wait()
		slices.Sort(took)
		t.Logf("%d honest requests: p50 %s, slowest %s; failed: %q", len(took), took[len(took)/2], took[len(took)-1], failed)
		return took, failed
	}
}

// repairTime is the time limit that the manifests give to repairs.
const repairTime = time.Second

func mustBeServed(t *testing.T, took []time.Duration, failed []string) {
	t.Helper()
	if len(failed) > 0 || took[len(took)-1] > repairTime {
		t.Errorf("honest requests are held up")
	}
}

// A frame is kept by its connection: large ones would be the memory of all of them.
func TestLargeFramesAreNotTaken(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	s := openStranger(t, w, 1)
	s.frame(unknownFrame, 0, 0, make([]byte, maxFrame+1))
	s.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, s); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection goes on after a frame that is too large")
	}
}

// Large objects of one tenant wait for their places, and hold up nobody else's on the API server's connection.
func TestBodiesThatWaitHoldUpNoOthers(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	client := w.client()
	stop := honest(t, w, client)
	vm := fmt.Appendf(nil, `{"metadata":{"name":"a","annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"template":{"note":"%s"}}}`, strings.Repeat("x", 300<<10))
	body := reviewOf(t, vmRequest(vm, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var tenants sync.WaitGroup
	var refused atomic.Int32
	for range 12 {
		tenants.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				response, err := client.Post(w.url+"/mutate-virtualmachine", "application/json", bytes.NewReader(body))
				if err != nil || response.StatusCode != http.StatusOK {
					refused.Add(1)
				}
				if err == nil {
					io.Copy(io.Discard, response.Body)
					response.Body.Close()
				}
			}
		})
	}
	tenants.Wait()
	took, failed := stop()
	mustBeServed(t, took, failed)
	if n := refused.Load(); n > 0 {
		t.Errorf("%d of the large objects were not reviewed", n)
	}
}

// Whoever has seemed quick, and then takes no answer, loses its places to those that wait.
func TestClientsThatTakeNothingLoseTheirPlaces(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	stop := honest(t, w, w.client())
	body := []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE","resource":{"resource":"x"}}}`)
	for host := range byte(3) {
		quick := openStranger(t, w, host+1)
		for range 64 {
			quick.request(http.MethodPost, "/mutate-pod", 0)
		}
		for range smallPlaces / maxStreams {
			stuck := openStranger(t, w, host+1, 0, 4, 0, 0, 0, 0) // SETTINGS_INITIAL_WINDOW_SIZE 0
			for range maxStreams {
				stuck.frame(dataFrame, endStream, stuck.request(http.MethodPost, "/mutate-pod", len(body)), body)
			}
		}
		time.Sleep(time.Second) // that is how long they would hold them
	}
	took, failed := stop()
	mustBeServed(t, took, failed)
}

// What strangers have the webhook write takes no room from what it has to say itself.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for range maxLines + 100 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	for w.log.count("TLS handshake error") < maxLinesOfOthers {
		w.log.wait(t, "TLS handshake error")
		time.Sleep(time.Millisecond)
	}
	w.review("/mutate-pod", podRequest(fixture(t, "host-network")))
	w.log.wait(t, "spec.hostNetwork is true")
	if lines := w.log.count("TLS handshake error"); lines > maxLinesOfOthers {
		t.Errorf("%d lines about strangers", lines)
	}
}

// Where there is no more room, a connection that is in use goes last, and one of a known host after those of strangers,
// however many the known host has.
func TestWhichConnectionGoes(t *testing.T) {
	c := &connections{most: 8, open: map[net.Conn]*connection{}, going: map[net.Conn]*connection{}}
	names := map[net.Conn]string{}
	add := func(name, host string, known bool, placed int32) {
		conn, _ := net.Pipe()
		one := &connection{host: host, since: time.Now()}
		if known {
			one.reviewed.Store(time.Now().UnixNano())
		}
		one.placed.Store(placed)
		c.open[conn], names[conn] = one, name
	}
	for n := range 5 {
		add(fmt.Sprint("stranger ", n), fmt.Sprint("stranger ", n), false, 0)
	}
	add("busy", "api", true, 1)
	add("idle", "api", true, 0)
	add("idle too", "api", true, 0)
	var went []string
	for len(c.open) > 0 {
		before := len(c.open)
		left := map[string]bool{}
		c.makeRoom()
		for conn := range c.open {
			left[names[conn]] = true
		}
		for _, name := range names {
			if !left[name] && !slices.Contains(went, name) {
				went = append(went, name)
			}
		}
		if len(c.open) != before-1 {
			t.Fatal("not one went")
		}
	}
	if went[0] != "stranger 0" || went[len(went)-1] != "busy" {
		t.Errorf("they went in this order: %q", went)
	}
}

// Text that is costly to read is not read once for each annotation, nor with a decoder for each key. The measure is what
// encoding/json takes to read the same.
func TestCostOfEscapedKeys(t *testing.T) {
	patches, err := patchset.Open(declaredPatches, serverImage)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	handler := newAdmission(log, log, time.Minute).handler(review.New(patches, "v1.0.0", log).VirtualMachine)
	var keys strings.Builder
	for n := 0; keys.Len() < 200<<10; n++ {
		fmt.Fprintf(&keys, `"\u003c%x":0,`, n)
	}
	applied, err := json.Marshal("{" + keys.String() + `"z":0}`)
	if err != nil {
		t.Fatal(err)
	}
	const ours = `"imds.kubevirt.io/enabled":"true","imds.kubevirt.io/network":"a","imds.kubevirt.io/bridge-name":"a","imds.kubevirt.io/token-audiences":"a","imds.kubevirt.io/token-expiration-seconds":"600","imds.kubevirt.io/require-header":"true"`
	vm := func(metadata string) []byte {
		return fmt.Appendf(nil, `{"metadata":{"annotations":{%s}},"spec":{"template":{"metadata":{"annotations":{%s}}}}}`, metadata, ours)
	}
	body := reviewOf(t, vmRequest(vm(`"kubectl.kubernetes.io/last-applied-configuration":`+string(applied)), vm(ours)))
	least := func(f func()) time.Duration {
		best := time.Hour
		for range 10 {
			began := time.Now()
			f()
			best = min(best, time.Since(began))
		}
		return best
	}
	reference := least(func() {
		var outer map[string]any
		json.Unmarshal(body, &outer)
		var inner map[string]any
		json.Unmarshal(fmt.Append(nil, "{", keys.String(), `"z":0}`), &inner)
	})
	took := least(func() {
		recorder := record(handler, "/mutate-virtualmachine", body)
		if recorder.Code != http.StatusOK {
			t.Fatal(recorder.Body)
		}
	})
	t.Logf("%d bytes: %s, %.1f times what encoding/json takes", len(body), took, float64(took)/float64(reference))
	if took > 5*reference {
		t.Error("it takes much longer than to read it")
	}
}
