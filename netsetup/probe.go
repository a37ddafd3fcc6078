package main

import (
	"bufio"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// probeTimeout bounds what a hung server can cost: the next change of the
// network waits for as long.
const probeTimeout = 100 * time.Millisecond

// probe asks the server at the address for its health, from inside the pod,
// and returns its status line, such as "200 OK", or why there is none.
func probe() string {
	address := netip.AddrPortFrom(wiring.Address.Addr(), 80).String()
	conn, err := net.DialTimeout("tcp", address, probeTimeout)
	if err != nil {
		return "not listening yet"
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(probeTimeout))
	if _, err := conn.Write([]byte("GET /healthz HTTP/1.0\r\n\r\n")); err != nil {
		return "does not answer"
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	_, status, isHTTP := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || !isHTTP {
		return "does not answer"
	}
	return status
}
