package guests

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
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
func halfOpenConnections(v *attackVM) {
	// Of an address of its own, by which it hears the server, but says nothing: its kernel, which knows nothing of
	// these connections, would reset them.
	who := packet.Party{MAC: v.guest.MAC, Addr: netip.MustParseAddr("10.244.1.99")}
	to := packet.Party{MAC: v.gateway.MAC, Addr: v.endpoint.Addr}
	var frames [][]byte
	for port := range halfOpen {
		frames = append(frames, packet.SYN(who, to, uint16(10_000+port), 80))
	}
	address := fmt.Sprintf("%s/32 dev eth0", who.Addr)
	silence := fmt.Sprintf("from %s type prohibit", who.Addr)
	v.with("ip addr add "+address+" && ip rule add "+silence, "ip rule del "+silence+" && ip addr del "+address, func() {
		v.guestSends(frames...)
		waiting := v.halfOpen()
		v.t.Logf("%d connections are half-open", waiting)
		if waiting == 0 {
			v.fail("served", "no connection is half-open: this proves nothing")
		}
		v.while(loadTime)
	})
	v.withinLimits()
}

// halfOpen counts the server's connections that wait for the guest's second segment.
func (v *attackVM) halfOpen() (count int) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/net/tcp", v.Server.PID()))
	check(v.t, err)
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
func slowClients(v *attackVM) {
	v.comesAgain = comeAgain
	clients, err := v.Guest.Agent.Hold(v.t.Context(), guestagent.Hold{
		Address: "169.254.169.254:80", Connections: slow, Drip: "GET /v1/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
	})
	check(v.t, err)
	v.while(loadTime)
	held, err := clients.Stop(v.t.Context())
	check(v.t, err)
	v.t.Logf("%+v; %d honest requests were reset and came again", held, v.resets)
	if held.Opened < slow*9/10 {
		v.fail("served", "only %d of %d connections were opened: this proves little", held.Opened, slow)
	}
	v.withinLimits()
}

// floodOfRequests: a guest asks as fast as it can, each time by a new connection.
// fiftySenders: for a minute fifty addresses of the guest, as containers have them that it routes, ask every second
// beside the guest itself. All are answered each time, and the endpoint has few of the node's neighbour entries.
func fiftySenders(v *attackVM) {
	const senders, neighboursLimit = 50, 4
	address := func(i int) string { return fmt.Sprintf("198.18.0.%d", i+1) }
	v.Shell(fmt.Sprintf("for i in $(seq %d); do ip addr add 198.18.0.$i/32 dev eth0; done", senders))
	var tasks []*guestagent.Task[guestagent.Asked]
	for i := range senders {
		task, err := v.Guest.Agent.Ask(v.t.Context(), guestagent.Ask{Get: guestagent.Get{URL: vmtest.MetadataURL + "/v1/token", Source: address(i)}, Rate: 1})
		check(v.t, err)
		tasks = append(tasks, task)
	}
	v.while(time.Minute)
	for i, task := range tasks {
		asked, err := task.Stop(v.t.Context())
		check(v.t, err)
		if asked.Sent < 30 || asked.Answered < asked.Sent-1 { // the last may be on its way
			v.fail("served", "%s: %d of %d answered, others: %v", address(i), asked.Answered, asked.Sent, asked.Failures)
		}
	}
	device, err := v.Net.Pod.Netlink().LinkByName(endpointDevice)
	check(v.t, err)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		entries, err := v.Net.Pod.Netlink().NeighList(device.Attrs().Index, family)
		check(v.t, err)
		if len(entries) > neighboursLimit {
			v.fail("served", "the endpoint has %d neighbours, want %d at most", len(entries), neighboursLimit)
		}
	}
	v.Shell(fmt.Sprintf("for i in $(seq %d); do ip addr del 198.18.0.$i/32 dev eth0; done", senders))
}

func floodOfRequests(v *attackVM) { v.floodOf(guestagent.Get{URL: vmtest.MetadataURL + "/v1/token"}) }

// floodOfRefusedRequests: what the guest must not ask, as fast as it can. It writes a few lines into the log of its
// node, and not one for each.
func floodOfRefusedRequests(v *attackVM) {
	before := strings.Count(v.Server.Log(), "\n")
	v.floodOf(guestagent.Get{URL: vmtest.MetadataURL + "/v1/token", Header: map[string]string{"Host": "evil.example"}})
	const lines = 5
	if n := strings.Count(v.Server.Log(), "\n") - before; n > lines {
		v.fail("served", "the server's log has %d more lines", n)
	}
}

func (v *attackVM) floodOf(request guestagent.Get) {
	flood, err := v.Guest.Agent.Ask(v.t.Context(), guestagent.Ask{Get: request, Rate: requestRate})
	check(v.t, err)
	v.while(loadTime)
	asked, err := flood.Stop(v.t.Context())
	check(v.t, err)
	v.t.Logf("%d requests in %s, %d answered with 200, others: %v", asked.Sent, asked.Took.Round(time.Second), asked.Answered, asked.Failures)
	v.withinLimits()
}

// floodOfFrames: frames of every kind to the endpoint's MAC and its address, as fast as the NIC takes them.
func floodOfFrames(v *attackVM) {
	to := v.endpoint
	var frames [][]byte
	for i := range frameRounds {
		port := uint16(20_000 + i)
		frames = append(frames,
			packet.SYN(v.guest, to, port, 80),
			packet.UDP(v.guest, to, port, 80, make([]byte, 1400)),
			packet.UDP(v.guest, packet.Party{MAC: to.MAC, Addr: v.neighbour.Addr}, port, 80, nil),
			packet.ARP(packet.ARPRequest, v.guest.MAC, to.MAC, v.guest, packet.Party{Addr: to.Addr}),
		)
	}
	flood, err := v.Guest.Agent.Send(v.t.Context(), guestagent.Send{Interface: "eth0", Frames: frames})
	check(v.t, err)
	v.while(loadTime)
	sent, err := flood.Stop(v.t.Context())
	check(v.t, err)
	v.t.Logf("%.0f frames a second", float64(sent.Frames)/sent.Took.Seconds())
	v.withinLimits()
}

// withinLimits says what imds-server took of its limits. Had it taken more memory, the kernel would have ended it.
func (v *attackVM) withinLimits() {
	peak, err := v.Server.Group.MemoryPeak()
	check(v.t, err)
	limit, err := v.Server.Group.MemoryLimit()
	check(v.t, err)
	throttled, err := v.Server.Group.ThrottledPeriods()
	check(v.t, err)
	const mebibyte = 1 << 20
	v.t.Logf("imds-server, its probes among it: at most %.1f MiB of %.0f, throttled in %d tenths of a second",
		float64(peak)/mebibyte, float64(limit)/mebibyte, throttled)
	if peak >= limit {
		v.fail("served", "imds-server came up to its memory limit")
	}
}
