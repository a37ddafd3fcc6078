package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

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
	ask := func() hand.Got {
		got, err := connection.get(hand.Get{URL: server.URL})
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
	if got := ask(); got.Failure != hand.Reset {
		t.Errorf("on a connection that the server has closed: %+v", got)
	}
	if got := ask(); got.Status != http.StatusOK {
		t.Errorf("afterwards: %+v", got)
	}
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}
