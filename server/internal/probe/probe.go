// Package probe asks the server for its health, as the kubelet's exec probes do.
// It speaks HTTP over a plain connection, which costs less than an http.Client.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// timeout bounds a probe from the first packet to the last.
// The kubelet gives it 5 s (timeoutSeconds in the pod's patch), and under a small
// CPU limit a flood leaves the server, and this process, little time.
const timeout = 4 * time.Second

// Check returns nil if the server at address answers /healthz with 200, or, if
// only its life is in question, at all. The error has the reason that the server
// gives.
func Check(ctx context.Context, address netip.AddrPort, live bool) error {
	deadline := time.Now().Add(timeout)
	dialer := net.Dialer{
		// By this source the server tells the pod's probes from the guest's requests.
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(address.Addr(), 0)),
		Deadline:  deadline,
		KeepAlive: -1,
	}
	conn, err := dialer.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return noAnswer(address, err)
	}
	defer conn.Close()
	conn.SetDeadline(deadline)

	host := netip.AddrPortFrom(address.Addr().WithZone(""), address.Port())
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return noAnswer(address, err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return noAnswer(address, err)
	}
	defer response.Body.Close()
	if live || response.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("http://%s/healthz answers %s: %s", address, quote.Text(response.Status), reason(response.Body))
}

// reason reads the detail of a problem document.
func reason(body io.Reader) string {
	const maxSize = 4 << 10
	var problem struct {
		Detail string `json:"detail"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxSize)).Decode(&problem); err != nil {
		return "without a problem document, so another program may listen there"
	}
	return problem.Detail
}

func noAnswer(address netip.AddrPort, err error) error {
	return fmt.Errorf("no answer from http://%s/healthz within %s: %w; see the log of imds-server", address, timeout, err)
}
