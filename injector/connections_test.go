package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// dialFrom connects to an address from one of many loopback addresses.
func dialFrom(ctx context.Context, n int, address string) (net.Conn, error) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2+byte(n/200), 1+byte(n%200))}}
	return dialer.DialContext(ctx, "tcp", address)
}

// Many hosts hold connections, and come again when they are closed. A connection
// that has carried a review is closed last.
func TestManyConnectionsFromManyHosts(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	body := reviewOf(t, podRequest(fixture(t, "masquerade")))
	client := w.client()
	honest := func() {
		t.Helper()
		response, err := client.Post(w.url+"/mutate-pod", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if answer, err := io.ReadAll(response.Body); err != nil || !bytes.Contains(answer, []byte(`"patch":`)) {
			t.Fatalf("%s %v", answer, err)
		}
	}
	honest()
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	var attackers sync.WaitGroup
	for n := range 2 * maxConnections {
		attackers.Go(func() {
			for ctx.Err() == nil {
				conn, err := dialFrom(ctx, n, strings.TrimPrefix(w.url, "https://"))
				if err != nil {
					continue
				}
				secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				if secure.HandshakeContext(ctx) == nil {
					end := context.AfterFunc(ctx, func() { conn.Close() })
					secure.Read(make([]byte, 1)) // until it is closed
					end()
				}
				conn.Close()
			}
		})
	}
	for range 50 {
		honest()
	}
	stop()
	attackers.Wait()
}

// The kubelet's port is open to everybody too.
func TestManyConnectionsToTheHealthPort(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	address := strings.TrimPrefix(w.healthURL, "http://")
	var open []net.Conn
	for range 20 * maxHealthConnections {
		conn, err := dialFrom(t.Context(), 7, address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: a\r\n%s", strings.Repeat("a: b\r\n", 100))
		open = append(open, conn)
	}
	if status, text := w.health("/healthz"); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	closed := 0
	for _, conn := range open {
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err == io.EOF || err != nil && strings.Contains(err.Error(), "reset") {
			closed++
		}
	}
	if closed < len(open)-maxHealthConnections {
		t.Errorf("of %d connections %d were closed", len(open), closed)
	}
}
