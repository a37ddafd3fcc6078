package conns

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// own is the address of the test server and of the pod's probes. Who connects
	// from another address is the guest.
	own       = "127.0.0.1"
	guestAddr = "127.0.0.2"
)

// server is an http.Server behind a Limit.
type server struct {
	addr string
	// open counts the connections that the http.Server holds, most is the highest
	// count.
	open, most atomic.Int64
	reports    chan string
	// idle gets a value when a connection has begun to wait for its next request,
	// which is some time after the client has its answer.
	idle chan struct{}
	// entered gets a value when a request for /wait is being answered, which lasts
	// until release is closed.
	entered chan struct{}
	release chan struct{}
}

func newServer(t *testing.T) *server {
	t.Helper()
	listener, err := net.Listen("tcp4", own+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		addr:    listener.Addr().String(),
		reports: make(chan string, 10000),
		idle:    make(chan struct{}, 10000),
		entered: make(chan struct{}),
		release: make(chan struct{}),
	}
	limit := NewLimit(netip.MustParseAddr(own), func(_ net.Addr, detail string) { s.reports <- detail })
	httpServer := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				s.entered <- struct{}{}
				<-s.release
			}
		}),
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.most.Store(max(s.most.Load(), s.open.Add(1)))
			case http.StateClosed:
				s.open.Add(-1)
			}
			limit.Track(conn, state)
			if state == http.StateIdle {
				s.idle <- struct{}{}
			}
		},
	}
	go httpServer.Serve(limit.Listener(listener))
	t.Cleanup(func() { httpServer.Close() })
	return s
}

// client is one connection to the server.
type client struct {
	net.Conn
	reader *bufio.Reader
	idle   <-chan struct{}
}

func (s *server) dial(t *testing.T, from string) *client {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp4", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{Conn: conn, reader: bufio.NewReader(conn), idle: s.idle}
}

// ask sends a request and reads the answer.
func (c *client) ask() error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// wantServed checks that the connection is open and answered, and returns when it
// waits again.
func (c *client) wantServed(t *testing.T, who string) {
	t.Helper()
	if err := c.ask(); err != nil {
		t.Errorf("%s: %v, want an answer", who, err)
		return
	}
	<-c.idle
}

// wantClosed waits until the server has closed the connection.
func (c *client) wantClosed(t *testing.T, who string) {
	t.Helper()
	if _, err := c.reader.ReadByte(); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want it closed", who, err)
	}
}

// fill opens as many connections of the guest as there may be, one after the
// other, so that the first has waited longest.
func (s *server) fill(t *testing.T) []*client {
	t.Helper()
	clients := make([]*client, maxGuest)
	for i := range clients {
		clients[i] = s.dial(t, guestAddr)
		clients[i].wantServed(t, "one of the first")
	}
	return clients
}

// occupy makes all of the guest's connections wait for their answers.
func (s *server) occupy(t *testing.T) {
	t.Helper()
	for range maxGuest {
		c := s.dial(t, guestAddr)
		if _, err := io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-s.entered
	}
}

func TestNewConnectionEndsTheOneThatWaitedLongest(t *testing.T) {
	s := newServer(t)
	clients := s.fill(t)
	clients[0].wantServed(t, "the oldest, which asks again") // so the second has waited longest now

	newcomer := s.dial(t, guestAddr)
	newcomer.wantServed(t, "the newcomer")
	clients[1].wantClosed(t, "the one that waited longest")
	for _, other := range append(clients[:1], clients[2:]...) {
		other.wantServed(t, "another")
	}
	if len(s.reports) != 1 {
		t.Errorf("%d connections were reported, want 1", len(s.reports))
	}
}

func TestConnectionBeingAnsweredIsNotEnded(t *testing.T) {
	s := newServer(t)
	s.occupy(t)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(guestAddr)}}
	newcomer, err := dialer.Dial("tcp4", s.addr)
	if err == nil {
		defer newcomer.Close()
		_, err = newcomer.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the newcomer: %v, want a reset", err)
	}
	close(s.release)
}

func TestSilentConnectionsAreEndedFirst(t *testing.T) {
	s := newServer(t)
	silent := s.dial(t, guestAddr)
	s.fill(t)
	silent.wantClosed(t, "the one that never asked")
}

func TestGuestCannotTakeThePodsPlaces(t *testing.T) {
	s := newServer(t)
	s.occupy(t)
	s.dial(t, own).wantServed(t, "a probe")
	close(s.release)
}

func TestPodsPlacesAreBoundedToo(t *testing.T) {
	s := newServer(t)
	first := s.dial(t, own)
	first.wantServed(t, "the first probe")
	for range maxPod {
		s.dial(t, own).wantServed(t, "a probe")
	}
	first.wantClosed(t, "the first probe")
}

// remoteConn is a connection of which only the other end is known.
type remoteConn struct {
	net.Conn
	remote *net.TCPAddr
}

func (c remoteConn) RemoteAddr() net.Addr { return c.remote }

func TestThePodIsToldFromTheGuestInBothFamilies(t *testing.T) {
	for _, c := range []struct {
		probes, remote string
		isPod          bool
	}{
		{"127.0.0.1", "127.0.0.1:40000", true},
		{"127.0.0.1", "[::ffff:127.0.0.1]:40000", true},
		{"127.0.0.1", "10.0.2.2:40000", false},
		{"127.0.0.1", "[fe80::2%veth-imds]:40000", false},
		{"fe80::a9fe:a9fe", "[fe80::a9fe:a9fe%veth-imds]:40000", true},
		{"fe80::a9fe:a9fe", "[fe80::2%veth-imds]:40000", false},
	} {
		limit := NewLimit(netip.MustParseAddr(c.probes), nil)
		conn := remoteConn{remote: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.remote))}
		if isPod := limit.poolOf(conn) == limit.pod; isPod != c.isPod {
			t.Errorf("with probes from %s, %s is taken for the pod: %t", c.probes, c.remote, isPod)
		}
	}
}

// However many come at once, the server never holds more than the bounds.
func TestBoundHoldsUnderAFloodOfConnections(t *testing.T) {
	s := newServer(t)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(guestAddr)}}
			for range 40 {
				conn, err := dialer.Dial("tcp4", s.addr)
				if errors.Is(err, syscall.ECONNRESET) {
					continue // the server was faster
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, "GET / HTTP/1.1\r\n")
			}
		})
	}
	group.Wait()
	if most := s.most.Load(); most > maxGuest+maxClosing {
		t.Errorf("the server held %d connections, want at most %d", most, maxGuest+maxClosing)
	}
}
