package checks

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// endpoint is where a guest finds the product.
const endpoint = "http://169.254.169.254"

// dialer connects from somewhere: from the pod, or from the guest.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// client makes each request by a connection of its own, as successive runs of curl do.
func (dial dialer) client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// ask returns the body of the answer to a GET. A status other than 200 is an error.
func (dial dialer) ask(ctx context.Context, path string) ([]byte, error) {
	return get(ctx, dial.client(), endpoint+path)
}

func get(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", address, response.Status, body)
	}
	return body, err
}

// awaitAnswer asks for the endpoint's health until there is an answer, since nothing tells when that will be, and
// returns how long it took. It does not wait long for a connection: the kernel sends a frame that was lost before
// the way was there again only after a second.
func (dial dialer) awaitAnswer(ctx context.Context) (time.Duration, error) {
	const (
		connectTime = 5 * time.Millisecond
		pause       = time.Millisecond
	)
	hasty := dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, stop := context.WithTimeout(ctx, connectTime)
		defer stop()
		return dial(ctx, network, address)
	})
	begin := time.Now()
	for {
		_, err := hasty.ask(ctx, "/healthz")
		took := time.Since(begin)
		if err == nil || took > patience || ctx.Err() != nil {
			return took, err
		}
		time.Sleep(pause)
	}
}
