package guests

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// secondary is the name that KubeVirt has Multus give to a secondary network's interface.
const secondary = "pod37a8eec1ce1"

// smokeChecks prove that the stage itself stands: a check that others base on something must not pass because of a
// stage on which nothing happens.
func smokeChecks(s *stage.Stage) []suite.Check {
	check := func(name, proves string, run func(*suite.T, *stage.Stage)) suite.Check {
		return suite.Check{Name: name, Proves: proves, Run: func(t *suite.T) { run(t, s) }}
	}
	return []suite.Check{
		check("token", "a guest that has just booted gets its token with busybox wget", getsToken),
		check("bridge", "in bridge binding it takes over the pod's address, MAC and routes", takesOverPod),
		check("hot-plug", "a second NIC is plugged, configured and unplugged, and a tap changes under it", plugsNIC),
		check("reboot", "it reboots, is reset and is paused, and the hand comes back", boots),
		check("ask", "asking tells lost requests and the gap of a restart", asks),
		check("frames", "frames are sent and seen, connections held and half opened", handlesFrames),
		check("stream", "its frames come to a unix socket, as passt's would", speaksToSocket),
		check("container", "a container in it asks through its NAT", asksFromContainer),
		check("migration", "it migrates, and what the hand is at goes on", migrates),
	}
}

func getsToken(t *suite.T, s *stage.Stage) {
	vm := s.New(t, stage.Options{})
	vm.StartSidecars()
	vm.Wire()
	begin := time.Now()
	vm.Boot()
	t.Figure("%.1f s", time.Since(begin).Seconds())
	vm.Configure("eth0")
	if route := vm.Shell("ip route show default"); !strings.Contains(route, "via 10.0.2.1 dev eth0") {
		t.Errorf("its default route is %q", route)
	}
	token := vm.RotateToken()
	var answer struct{ Token string }
	t.Check(json.Unmarshal([]byte(vm.Shell("wget -q -O - "+stage.MetadataURL+"/v1/token")), &answer))
	if answer.Token != token {
		t.Errorf("it got another token than the volume's")
	}
	t.Check(vm.Server.Probe(t.Context(), "-live"))
}

func takesOverPod(t *suite.T, s *stage.Stage) {
	vm := s.New(t, stage.Options{Network: podnet.Options{Binding: podnet.Bridge, MTU: 1400}})
	mac, err := vm.Net.Pod.MAC("eth0")
	t.Check(err)
	vm.StartSidecars()
	vm.Wire()
	vm.Boot()
	vm.Configure("eth0")
	seen := vm.Shell("ip addr show eth0; ip route")
	for _, want := range []string{mac.String(), "mtu 1400", podnet.PodAddr.String() + "/24", "default via " + podnet.NeighbourAddr.String()} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q in %s", want, seen)
		}
	}
	vm.Shell("ping -c 1 -W 2 " + podnet.NeighbourAddr.String())
	requireAnswer(t, vm.Get("/v1/identity"))
}

func requireAnswer(t *suite.T, got hand.Got) {
	if got.Status != 200 {
		t.Errorf("status %d, %s: %s%s", got.Status, got.Failure, got.Detail, got.Body)
	}
}

func plugsNIC(t *suite.T, s *stage.Stage) {
	vm := s.Start(t, stage.Options{})
	vm.AddSecondary(secondary)
	awaitShell(t, vm, "test -d /sys/class/net/eth1")
	vm.Configure("eth1")
	vm.Shell("ping -c 1 -W 2 10.245.1.1")
	t.Check(vm.Guest.Unplug(t.Context(), "nic1"))
	vm.Shell("test ! -d /sys/class/net/eth1")

	vm.ReplugTap()
	awaitShell(t, vm, "test -d /sys/class/net/eth0")
	vm.Configure("eth0")
	requireAnswer(t, vm.Get("/v1/identity"))
}

// awaitShell waits in the guest for what no event tells.
func awaitShell(t *suite.T, vm *stage.VM, condition string) {
	vm.Shell("for i in $(seq 200); do " + condition + " && exit 0; usleep 50000; done; exit 1")
}

func boots(t *suite.T, s *stage.Stage) {
	vm := s.Start(t, stage.Options{})
	begin := time.Now()
	ran, err := vm.Guest.Hand.Run(t.Context(), hand.Run{Command: "reboot -f"})
	if err == nil {
		t.Fatalf("the guest answered a reboot with %+v", ran)
	}
	t.Check(vm.Guest.AwaitBoot(t.Context(), 1))
	t.Figure("%.1f s", time.Since(begin).Seconds())
	t.Check(vm.Guest.Reset(t.Context()))
	vm.Configure("eth0")
	requireAnswer(t, vm.Get("/healthz"))

	t.Check(vm.Guest.Pause(t.Context()))
	limited, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := vm.Guest.Hand.Get(limited, hand.Get{URL: stage.MetadataURL}); err == nil {
		t.Errorf("a paused guest has got %+v", got)
	}
	t.Check(vm.Guest.Resume(t.Context()))
	requireAnswer(t, vm.Get("/healthz"))
}

func asks(t *suite.T, s *stage.Stage) {
	vm := s.Start(t, stage.Options{})
	first := vm.Get("/v1/token").Body
	asking := vm.Ask("/v1/token", 100)
	vm.AwaitAnswers(3)
	vm.RotateToken()
	second := vm.Get("/v1/token").Body
	vm.Server.Kill()
	if refused := vm.Get("/v1/token"); refused.Failure != hand.Refused {
		t.Errorf("without a server it got %+v", refused)
	}
	t.Check(vm.Server.Start())
	t.Check(vm.Server.AwaitProbe(t.Context()))
	vm.AwaitAnswers(3)
	asked := vm.Stop(asking)
	t.Logf("%d of %d answered, failures %v, longest gap %d ms", asked.Answered, asked.Sent, asked.Failures, asked.Gap.Milliseconds())
	if asked.Failures[hand.Refused] == 0 || asked.Answered == 0 {
		t.Errorf("a server that was away for a while shows no refusal, or no answer")
	}
	var bodies []string
	for _, b := range asked.Bodies {
		bodies = append(bodies, b.Text)
	}
	if !slices.Equal(bodies, []string{first, second}) {
		t.Errorf("%d different bodies, want the token before and the token after", len(bodies))
	}
}

// knock is an EtherType that nobody uses: local experimental 1 (IEEE 802).
const knock = 0x88b5

func handlesFrames(t *suite.T, s *stage.Stage) {
	vm := s.Start(t, stage.Options{})
	g := vm.Guest.Hand
	frame := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, []byte{2, 0, 0, 0, 0, 9}, []byte{0x88, 0xb5}, make([]byte, 46))
	recording, err := podnet.Capture(vm.Net.Pod, "tap0")
	t.Check(err)
	sniffing, err := g.Sniff(t.Context(), hand.Sniff{Interface: "eth0", EtherType: knock})
	t.Check(err)
	sending, err := g.Send(t.Context(), hand.Send{Interface: "eth0", Frames: [][]byte{frame}, Rounds: 20, Pause: time.Millisecond})
	t.Check(err)
	sent, err := sending.Wait(t.Context())
	t.Check(err)
	sniffed, err := sniffing.Stop(t.Context())
	t.Check(err)
	frames, err := recording.Stop()
	t.Check(err)
	arrived := 0
	for _, f := range frames {
		if bytes.Equal(f.Data, frame) {
			arrived++
		}
	}
	if sent.Frames != 20 || len(sniffed.Frames) != 20 || arrived != 20 {
		t.Errorf("%d frames sent, %d seen in the guest, %d on the tap, want 20", sent.Frames, len(sniffed.Frames), arrived)
	}

	listener, err := vm.Net.Pod.Listen(t.Context(), "tcp", "10.0.2.1:1234")
	t.Check(err)
	defer listener.Close()
	holding, err := g.Hold(t.Context(), hand.Hold{Address: "10.0.2.1:1234", Connections: 5, Drip: "GET", Pause: time.Millisecond})
	t.Check(err)
	for range 5 {
		conn, err := listener.Accept()
		t.Check(err)
		defer conn.Close()
		got := make([]byte, 3)
		if _, err := conn.Read(got[:1]); err != nil {
			t.Errorf("nothing drips: %v", err)
		}
	}
	held, err := holding.Stop(t.Context())
	t.Check(err)
	if held.Opened != 5 || held.Ended != 0 {
		t.Errorf("of 5 connections to an open port %+v", held)
	}

	mac, err := vm.Net.Pod.MAC("k6t-eth0")
	t.Check(err)
	answers, err := podnet.Capture(vm.Net.Pod, "tap0")
	t.Check(err)
	opening, err := g.HalfOpen(t.Context(), hand.HalfOpen{Interface: "eth0", MAC: mac.String(), Target: "10.0.2.1:1234",
		Sources: []string{"10.0.2.77", "10.0.2.78"}, Ports: 10})
	t.Check(err)
	limited, cancel := context.WithTimeout(t.Context(), stage.Patience)
	defer cancel()
	connections := map[string]bool{}
	t.Check(answers.Wait(limited, func(f podnet.Frame) bool {
		if isSYNACK(f.Data) {
			connections[string(f.Data[30:38])] = true // destination address, and both ports
		}
		return len(connections) == 20
	}))
	// The last of them has yet to pass the guest's NIC.
	vm.Shell("true")
	halfOpened, err := opening.Stop(t.Context())
	t.Check(err)
	_, err = answers.Stop()
	t.Check(err)
	if halfOpened.Sent != 20 || halfOpened.Answered != 20 || halfOpened.Refused != 0 {
		t.Errorf("of 20 connections half opened %+v", halfOpened)
	}
}

// isSYNACK tells the second segment of a TCP connection, in an IPv4 packet without options.
func isSYNACK(frame []byte) bool {
	return len(frame) >= 54 && frame[12] == 0x08 && frame[13] == 0x00 && frame[14] == 0x45 && frame[23] == 6 && frame[47] == 0x12
}

func speaksToSocket(t *suite.T, s *stage.Stage) {
	folder, err := os.MkdirTemp("", "stream-")
	t.Check(err)
	t.Cleanup(func() { t.Check(os.RemoveAll(folder)) })
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, "socket"), Net: "unix"})
	t.Check(err)
	t.Cleanup(func() { listener.Close() })
	t.Check(listener.SetDeadline(time.Now().Add(stage.Patience)))
	vm := s.New(t, stage.Options{})
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 7}
	vm.AddNIC(qemu.NIC{MAC: mac, MTU: 1500, Stream: listener.Addr().String()})
	vm.Boot()
	conn, err := listener.Accept()
	t.Check(err)
	defer conn.Close()
	t.Check(conn.SetDeadline(time.Now().Add(stage.Patience)))
	vm.Shell("ip link set eth0 up; arping -c 1 -w 1 -I eth0 -U 10.0.0.1 || true")
	// Each frame comes after its length, four bytes in network order.
	header := make([]byte, 4+14)
	_, err = io.ReadFull(conn, header)
	t.Check(err)
	if !bytes.Equal(header[4+6:4+12], mac) {
		t.Errorf("the first bytes are %x, want a frame from %s", header, mac)
	}
}

func asksFromContainer(t *suite.T, s *stage.Stage) {
	vm := s.Start(t, stage.Options{})
	inside := vm.StartContainer()
	if addresses := vm.Shell(inside + "ip addr"); strings.Contains(addresses, "10.0.2.2") {
		t.Errorf("the container is in the guest's own network: %s", addresses)
	}
	if body := vm.Shell(inside + "wget -q -O - " + stage.MetadataURL + "/healthz"); strings.TrimSpace(body) != "OK" {
		t.Errorf("the container got %q", body)
	}
}

func migrates(t *suite.T, s *stage.Stage) {
	source := s.Start(t, stage.Options{Pod: "virt-launcher-source"})
	target := s.New(t, stage.Options{Pod: "virt-launcher-target"})
	target.StartSidecars()
	target.Wire()
	asking := source.Ask("/v1/identity", 10)
	source.AwaitAnswers(3)
	migration := source.Migrate(target)
	requireAnswer(t, target.Get("/v1/identity"))
	first := time.Since(migration.Resumed)
	asked := target.Stop(asking)
	t.Figure("%d ms", first.Milliseconds())
	t.Logf("down for %d ms of %d ms; first answer %d ms after the target resumed; %d of %d answered, %v",
		migration.Downtime.Milliseconds(), migration.Total.Milliseconds(), first.Milliseconds(), asked.Answered, asked.Sent, asked.Failures)
	if len(asked.Bodies) != 2 || !strings.Contains(asked.Bodies[1].Text, "virt-launcher-target") {
		t.Errorf("the answers' bodies are %v, want the source's and the target's", asked.Bodies)
	}
}
