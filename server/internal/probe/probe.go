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

// Server says whom to ask, and how.
type Server struct {
	// Address is where the guest asks, with a zone if it needs one.
	Address netip.AddrPort
	// Listens is where the server listens: elsewhere where the guest is redirected.
	Listens netip.AddrPort
	// Host is what the guest would ask for.
	Host netip.AddrPort
	// Source is the address to ask from, by which the server tells the pod's probes
	// from the guest's requests.
	Source netip.Addr
}

// Check returns nil if the server answers /healthz with 200 where the guest asks, or,
// if only its life is in question, at all, there or where it listens: the redirection
// that may be missing is not its own. The error has the reason that the server gives.
// While the pod does not have the address, the server waits for it: it lives, and the
// kubelet's restarts would only delay it.
func Check(ctx context.Context, server Server, live bool) error {
	err := ask(ctx, server, server.Address, live)
	if err != nil && !live && !isLocal(server.Address.Addr()) {
		return notWired(server.Address.Addr())
	}
	if err == nil || !live {
		return err
	}
	if server.Listens != server.Address && ask(ctx, server, server.Listens, live) == nil {
		return nil
	}
	if !isLocal(server.Address.Addr()) {
		return nil
	}
	return err
}

// patience is how long each address is asked.
func (s Server) patience() time.Duration {
	if s.Listens != s.Address {
		return timeout / 2
	}
	return timeout
}

// ask asks at an address.
func ask(ctx context.Context, server Server, address netip.AddrPort, live bool) error {
	deadline := time.Now().Add(server.patience())
	// A link-local source wants a zone as well; IPv4 has none.
	source := server.Source.WithZone(address.Addr().Zone())
	dialer := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)),
		Deadline:  deadline,
		KeepAlive: -1,
	}
	conn, err := dialer.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return noAnswer(address, err)
	}
	defer conn.Close()
	conn.SetDeadline(deadline)

	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", server.Host); err != nil {
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

// isLocal tells whether the pod has the address.
func isLocal(address netip.Addr) bool {
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return false
	}
	socket.Close()
	return true
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

// notWired tells what is missing where nobody can answer yet.
func notWired(address netip.Addr) error {
	return fmt.Errorf("the pod does not have the address %s yet: neither imds-init nor the agent of the node has wired it; see the log of imds-server", address)
}

func noAnswer(address netip.AddrPort, err error) error {
	return fmt.Errorf("no answer from http://%s/healthz within %s: %w; see the log of imds-server", address, timeout, err)
}
