package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// kept is a connection over which one request after the other goes, as long as it lasts.
type kept struct {
	conn   net.Conn // nil: there is none yet, or none any more
	reader *bufio.Reader
}

// get makes one request.
func (k *kept) get(g hand.Get) (hand.Got, error) {
	request, err := newRequest(g)
	if err != nil {
		return hand.Got{}, err
	}
	dial, err := newDialer(g)
	if err != nil {
		return hand.Got{}, err
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

func (k *kept) exchange(request *http.Request, dial dialer, deadline time.Time) (hand.Got, error) {
	var got hand.Got
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
