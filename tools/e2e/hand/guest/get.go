package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// getLimit is how long a request may take that says nothing else.
const getLimit = 5 * time.Second

// largestBody is how much of an answer is kept, in bytes.
const largestBody = 1 << 20

// get makes one request by a connection of its own.
func get(ctx context.Context, g hand.Get) (hand.Got, error) {
	request, err := newRequest(g)
	if err != nil {
		return hand.Got{}, err
	}
	dial, err := newDialer(g)
	if err != nil {
		return hand.Got{}, err
	}

	ctx, cancel := context.WithTimeout(ctx, limitOf(g))
	defer cancel()
	var got hand.Got
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
func limitOf(g hand.Get) time.Duration {
	if g.Limit == 0 {
		return getLimit
	}
	return g.Limit
}

func newRequest(g hand.Get) (*http.Request, error) {
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
func newDialer(g hand.Get) (dialer, error) {
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

func narrow(fd int, network string, g hand.Get) error {
	if g.Interface != "" {
		if err := unix.BindToDevice(fd, g.Interface); err != nil {
			return err
		}
	}
	if g.HopLimit == 0 {
		return nil
	}
	if network == "tcp6" {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, g.HopLimit)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, g.HopLimit)
}

// classify names the way in which a connection failed.
func classify(err error) hand.Failure {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return hand.Timeout
	case errors.Is(err, unix.ECONNREFUSED):
		return hand.Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return hand.Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ENETDOWN):
		return hand.Unreachable
	case strings.Contains(err.Error(), "server closed idle connection"): // before the request was sent: net/http
		return hand.Reset
	}
	return hand.Unknown
}
