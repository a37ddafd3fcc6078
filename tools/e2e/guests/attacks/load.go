package attacks

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

const (
	// loadTime is how long an attack by load lasts. A few probes fit into it, each of which a small CPU limit makes
	// slow.
	loadTime = 10 * time.Second

	halfOpen    = 10_000
	slow        = 1000
	requestRate = 300 // in a second: more than an emulated guest gets answered
	frameRounds = 64  // frames that are sent over and over

	// comeAgain is how long a client that is reset tries again: as a rule less than a second.
	comeAgain = 5 * time.Second
)

// halfOpenConnections: a guest begins thousands of connections, and never finishes one.
func halfOpenConnections(s *scene) {
	// Of an address of its own, by which it hears the server, but says nothing: its kernel, which knows nothing of
	// these connections, would reset them.
	who := packet.Party{MAC: s.guest.MAC, Addr: netip.MustParseAddr("10.244.1.99")}
	to := packet.Party{MAC: s.gateway.MAC, Addr: s.endpoint.Addr}
	var frames [][]byte
	for port := range halfOpen {
		frames = append(frames, packet.SYN(who, to, uint16(10_000+port), 80))
	}
	address := fmt.Sprintf("%s/32 dev eth0", who.Addr)
	silence := fmt.Sprintf("from %s type prohibit", who.Addr)
	s.with("ip addr add "+address+" && ip rule add "+silence, "ip rule del "+silence+" && ip addr del "+address, func() {
		s.guestSends(frames...)
		waiting := s.halfOpen()
		s.t.Logf("%d connections are half-open", waiting)
		if waiting == 0 {
			s.t.Errorf("no connection is half-open: this proves nothing")
		}
		s.while(loadTime)
	})
	s.withinLimits()
}

// halfOpen counts the server's connections that wait for the guest's second segment.
func (s *scene) halfOpen() (count int) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/net/tcp", s.Server.PID()))
	s.t.Check(err)
	defer file.Close()
	const stateColumn, synReceived = 3, "03"
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > stateColumn && fields[stateColumn] == synReceived {
			count++
		}
	}
	return count
}

// slowClients: connections that send a request a byte a second. The server has places for some of them, and closes
// who has waited longest to make room: where hundreds come in the same instant, that may be an honest one, which is
// served when it comes again.
func slowClients(s *scene) {
	s.comesAgain = comeAgain
	clients, err := s.Guest.Hand.Hold(s.t.Context(), hand.Hold{
		Address: "169.254.169.254:80", Connections: slow, Drip: "GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
	})
	s.t.Check(err)
	s.while(loadTime)
	held, err := clients.Stop(s.t.Context())
	s.t.Check(err)
	s.t.Logf("%+v; %d honest requests were reset and came again", held, s.seen.resets)
	if held.Opened < slow*9/10 {
		s.t.Errorf("only %d of %d connections were opened: this proves little", held.Opened, slow)
	}
	s.withinLimits()
}

// floodOfRequests: a guest asks as fast as it can, each time by a new connection.
func floodOfRequests(s *scene) { s.floodOf(hand.Get{URL: stage.MetadataURL + "/v1/token"}) }

// floodOfRefusedRequests: what the guest must not ask, as fast as it can. It writes a few lines into the log of its
// node, and not one for each.
func floodOfRefusedRequests(s *scene) {
	before := strings.Count(s.Server.Log(), "\n")
	s.floodOf(hand.Get{URL: stage.MetadataURL + "/v1/token", Header: map[string]string{"Host": "evil.example"}})
	const lines = 5
	if n := strings.Count(s.Server.Log(), "\n") - before; n > lines {
		s.t.Errorf("the server's log has %d more lines", n)
	}
}

func (s *scene) floodOf(request hand.Get) {
	flood, err := s.Guest.Hand.Ask(s.t.Context(), hand.Ask{Get: request, Rate: requestRate})
	s.t.Check(err)
	s.while(loadTime)
	asked, err := flood.Stop(s.t.Context())
	s.t.Check(err)
	s.t.Logf("%d requests in %s, %d answered with 200, others: %v", asked.Sent, asked.Took.Round(time.Second), asked.Answered, asked.Failures)
	s.withinLimits()
}

// floodOfFrames: frames of every kind to the endpoint's MAC and its address, as fast as the NIC takes them.
func floodOfFrames(s *scene) {
	to := s.endpoint
	var frames [][]byte
	for i := range frameRounds {
		port := uint16(20_000 + i)
		frames = append(frames,
			packet.SYN(s.guest, to, port, 80),
			packet.UDP(s.guest, to, port, 80, make([]byte, 1400)),
			packet.UDP(s.guest, packet.Party{MAC: to.MAC, Addr: s.neighbour.Addr}, port, 80, nil),
			packet.ARP(packet.ARPRequest, s.guest.MAC, to.MAC, s.guest, packet.Party{Addr: to.Addr}),
		)
	}
	flood, err := s.Guest.Hand.Send(s.t.Context(), hand.Send{Interface: "eth0", Frames: frames})
	s.t.Check(err)
	s.while(loadTime)
	sent, err := flood.Stop(s.t.Context())
	s.t.Check(err)
	s.t.Logf("%.0f frames a second", float64(sent.Frames)/sent.Took.Seconds())
	s.withinLimits()
}

// withinLimits says what imds-server took of its limits. Had it taken more memory, the kernel would have ended it.
func (s *scene) withinLimits() {
	peak, err := s.Server.Group.MemoryPeak()
	s.t.Check(err)
	limit, err := s.Server.Group.MemoryLimit()
	s.t.Check(err)
	throttled, err := s.Server.Group.ThrottledPeriods()
	s.t.Check(err)
	const mebibyte = 1 << 20
	s.t.Logf("imds-server, its probes among it: at most %.1f MiB of %.0f, throttled in %d tenths of a second",
		float64(peak)/mebibyte, float64(limit)/mebibyte, throttled)
	if peak >= limit {
		s.t.Errorf("imds-server came up to its memory limit")
	}
}
