package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// getLimit is how long a request may take that says nothing else.
const getLimit = 5 * time.Second

// largestBody is how much of an answer is kept, in bytes.
const largestBody = 1 << 20

// get makes one request by a connection of its own.
func get(g guestagent.Get) (guestagent.Got, error) {
	request, err := newRequest(g)
	if err != nil {
		return guestagent.Got{}, err
	}
	dial, err := newDialer(g)
	if err != nil {
		return guestagent.Got{}, err
	}

	ctx, cancel := context.WithTimeout(context.Background(), limitOf(g))
	defer cancel()
	var got guestagent.Got
	begin := time.Now()
	transport := &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext:        dial,
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		got.Source = info.Conn.LocalAddr().String()
	}})
	response, err := transport.RoundTrip(request.WithContext(ctx))
	if err == nil {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(response.Body, largestBody))
		response.Body.Close()
		got.Status, got.Body, got.Header = response.StatusCode, string(body), map[string]string{}
		for name := range response.Header {
			got.Header[name] = response.Header.Get(name)
		}
	}
	got.Took = time.Since(begin)
	if err != nil {
		got.Failure, got.Detail = classify(err), err.Error()
	}
	return got, nil
}

// limitOf is how long a request may take.
func limitOf(g guestagent.Get) time.Duration {
	if g.Limit == 0 {
		return getLimit
	}
	return g.Limit
}

func newRequest(g guestagent.Get) (*http.Request, error) {
	request, err := http.NewRequest(g.Method, g.URL, strings.NewReader(g.Body))
	if err != nil {
		return nil, err
	}
	for name, value := range g.Header {
		request.Header.Set(name, value)
	}
	if host := g.Header["Host"]; host != "" {
		request.Host = host
	}
	return request, nil
}

// dialer makes connections.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newDialer makes connections that leave as the request says.
func newDialer(g guestagent.Get) (dialer, error) {
	dialer := &net.Dialer{Control: func(network, _ string, socket syscall.RawConn) (err error) {
		outer := socket.Control(func(fd uintptr) { err = narrow(int(fd), network, g) })
		return errors.Join(outer, err)
	}}
	if g.Source != "" {
		source, err := netip.ParseAddr(g.Source)
		if err != nil {
			return nil, err
		}
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	if g.Namespace == "" {
		return dialer.DialContext, nil
	}
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		namespace, err := podnet.OpenNamespace(g.Namespace)
		if err != nil {
			return nil, err
		}
		defer namespace.Close()
		err = namespace.Do(func() error { conn, err = dialer.DialContext(ctx, network, address); return err })
		return conn, err
	}, nil
}

func narrow(fd int, network string, g guestagent.Get) error {
	switch {
	case g.HopLimit == 0:
		return nil
	case network == "tcp6":
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, g.HopLimit)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, g.HopLimit)
}

// classify names the way in which a connection failed.
func classify(err error) guestagent.Failure {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return guestagent.Timeout
	case errors.Is(err, unix.ECONNREFUSED):
		return guestagent.Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return guestagent.Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ENETDOWN):
		return guestagent.Unreachable
	case strings.Contains(err.Error(), "server closed idle connection"): // before the request was sent: net/http
		return guestagent.Reset
	}
	return guestagent.Unknown
}

// kept is a connection over which one request after the other goes, as long as it lasts.
type kept struct {
	conn   net.Conn // nil: there is none yet, or none any more
	reader *bufio.Reader
}

// get makes one request.
func (k *kept) get(g guestagent.Get) (guestagent.Got, error) {
	request, err := newRequest(g)
	if err != nil {
		return guestagent.Got{}, err
	}
	dial, err := newDialer(g)
	if err != nil {
		return guestagent.Got{}, err
	}
	begin := time.Now()
	got, err := k.exchange(request, dial, begin.Add(limitOf(g)))
	got.Took = time.Since(begin)
	if err != nil {
		k.close()
		got.Failure, got.Detail = classify(err), err.Error()
	}
	return got, nil
}

func (k *kept) exchange(request *http.Request, dial dialer, deadline time.Time) (guestagent.Got, error) {
	var got guestagent.Got
	if k.conn == nil {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		address := request.URL.Host
		if request.URL.Port() == "" {
			address = net.JoinHostPort(request.URL.Hostname(), "80")
		}
		var err error
		if k.conn, err = dial(ctx, "tcp", address); err != nil {
			return got, err
		}
		k.reader = bufio.NewReader(k.conn)
	}
	got.Source = k.conn.LocalAddr().String()
	k.conn.SetDeadline(deadline)
	if err := request.Write(k.conn); err != nil {
		return got, err
	}
	response, err := http.ReadResponse(k.reader, request)
	if err != nil {
		return got, err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, largestBody))
	got.Status, got.Body = response.StatusCode, string(body)
	if response.Close {
		k.close()
	}
	return got, err
}

func (k *kept) close() {
	if k.conn != nil {
		k.conn.Close()
		k.conn = nil
	}
}

// mostLosses is how many losses a report holds.
const mostLosses = 1000

// attempt is one request of many. Times are since the begin of the asking.
type attempt struct {
	begin, end time.Duration
	got        guestagent.Got
}

// ask asks at a rate until ctx ends, and waits for the last answers.
func ask(ctx context.Context, a guestagent.Ask, begun func()) (guestagent.Asked, error) {
	if a.Rate < 1 || a.Rate > 10000 {
		return guestagent.Asked{}, errors.New("the rate is not between 1 and 10000 requests in a second")
	}
	if _, err := http.NewRequest(a.Method, a.URL, nil); err != nil {
		return guestagent.Asked{}, err
	}
	var mu sync.Mutex
	var attempts []attempt
	var underway sync.WaitGroup
	request, start := func() (guestagent.Got, error) { return get(a.Get) }, underway.Go
	if a.Keep {
		connection := new(kept)
		defer connection.close()
		request = func() (guestagent.Got, error) { return connection.get(a.Get) }
		a.InTurn = true
	}
	if a.InTurn {
		start = func(try func()) { try() }
	}
	begin := time.Now()
	begun()
	try := func() {
		this := attempt{begin: time.Since(begin)}
		got, err := request() // its own limit ends it
		this.end, this.got = time.Since(begin), got
		if err != nil {
			this.got = guestagent.Got{Failure: guestagent.Unknown, Detail: err.Error()}
		}
		mu.Lock()
		defer mu.Unlock()
		attempts = append(attempts, this)
	}
	pace := time.NewTicker(time.Second / time.Duration(a.Rate))
	defer pace.Stop()
	for ctx.Err() == nil {
		start(try)
		select {
		case <-pace.C:
		case <-ctx.Done():
		}
	}
	stopped := time.Since(begin)
	underway.Wait()
	asked := report(attempts, stopped, time.Since(begin))
	asked.Late = late(attempts, a)
	return asked, nil
}

// report sums up attempts in the order of their ends. The asking was stopped at a time, and took until the last of
// them had ended.
func report(attempts []attempt, stopped, took time.Duration) guestagent.Asked {
	asked := guestagent.Asked{Sent: len(attempts), Failures: map[guestagent.Failure]int{}, Took: took}
	var last time.Duration // good answer
	gap := func(until time.Duration) {
		if until-last > asked.Gap {
			asked.Gap, asked.GapBegin = until-last, last
		}
		last = until
	}
	for _, t := range attempts {
		failure, detail := t.got.Failure, t.got.Detail
		if failure == "" && t.got.Status != http.StatusOK {
			failure, detail = guestagent.BadStatus, t.got.Body
		}
		if failure == "" {
			asked.Answered++
			gap(min(t.end, stopped))
			continue
		}
		asked.Failures[failure]++
		if len(asked.Lost) < mostLosses {
			asked.Lost = append(asked.Lost, guestagent.Loss{Begin: t.begin, End: t.end, Failure: failure, Detail: detail})
		}
	}
	gap(stopped)
	asked.Bodies = bodies(attempts)
	return asked
}

// bodies puts answers that follow each other, by their requests' begins, and are the same, together.
func bodies(attempts []attempt) []guestagent.Body {
	var runs []guestagent.Body
	for _, t := range inOrder(attempts) {
		if t.got.Failure != "" || t.got.Status != http.StatusOK {
			continue
		}
		if len(runs) == 0 || runs[len(runs)-1].Text != t.got.Body {
			runs = append(runs, guestagent.Body{Text: t.got.Body, First: t.begin})
		}
		run := &runs[len(runs)-1]
		run.Count++
		run.Last = max(run.Last, t.end)
	}
	return runs
}

// late is how much later than at its time an attempt began at most.
func late(attempts []attempt, a guestagent.Ask) (most time.Duration) {
	begun := inOrder(attempts)
	for i := 1; i < len(begun); i++ {
		due := begun[i-1].begin + time.Second/time.Duration(a.Rate)
		if a.InTurn {
			due = max(due, begun[i-1].end)
		}
		most = max(most, begun[i].begin-due)
	}
	return most
}

// inOrder sorts attempts by their begins.
func inOrder(attempts []attempt) []attempt {
	return slices.SortedStableFunc(slices.Values(attempts), func(a, b attempt) int { return cmp.Compare(a.begin, b.begin) })
}
