package attacks

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// Where frames are recorded: the neighbour's end of the uplink, and in the pod the endpoint, the guest's tap, the
// bridge as the pod's own interface, and lo.
const (
	uplink         = podnet.NeighbourInterface
	endpointDevice = "veth-imds"
	guestTap       = "tap0"
	bridgeDevice   = "k6t-eth0"
	loopback       = "lo"
)

// honestRequests is how often the guest asks before an attack, and after it.
const honestRequests = 3

// probeLimit is timeoutSeconds of the probe in the declared patch.
const probeLimit = 5 * time.Second

// scene is a VM under attack.
type scene struct {
	*stage.VM
	t     *suite.T
	token string

	// The parties, with the MACs and addresses that are their own. In bridge binding the neighbour is the gateway.
	guest, gateway, neighbour packet.Party
	endpoint                  packet.Party

	recordings map[string]*podnet.Recording
	// forbidden are payloads of frames that must not come to the endpoint.
	forbidden [][]byte
	// guestMACs are those from which the endpoint may be asked.
	guestMACs []string
	// comesAgain is for how long an honest request that is reset is made again.
	comesAgain time.Duration

	mu   sync.Mutex // guards the probes in seen
	seen *evidence
}

// perform does an attack on a VM whose guest is up, and returns what was seen from before the attack until after it.
func perform(t *suite.T, vm *stage.VM, a attack) *evidence {
	s := &scene{VM: vm, t: t, token: vm.RotateToken(), recordings: map[string]*podnet.Recording{}, seen: newEvidence()}
	s.findParties()
	s.record(uplink, vm.Net.Neighbour)
	if !a.flood {
		for _, device := range []string{endpointDevice, guestTap, bridgeDevice, loopback} {
			s.record(device, vm.Net.Pod)
		}
	}
	bridgeMAC := s.mac(vm.Net.Pod, bridgeDevice)
	for range honestRequests {
		s.serve()
	}
	a.do(s)
	for range honestRequests {
		s.serve()
	}
	s.probe()
	// Something of the guest's own, so that a recording of the uplink without a frame is a broken one.
	s.Shell("arping -f -c 3 -w 3 -I eth0 " + s.gateway.Addr.String() + "; ping -c 1 -W 1 " + s.neighbour.Addr.String() + " || true")
	if now := s.mac(vm.Net.Pod, bridgeDevice); now.String() != bridgeMAC.String() {
		t.Errorf("the bridge's MAC was %s and is %s", bridgeMAC, now)
	}
	s.judge()
	return s.seen
}

func (s *scene) findParties() {
	s.neighbour = packet.Party{MAC: s.mac(s.Net.Neighbour, uplink), Addr: podnet.NeighbourAddr}
	s.endpoint = packet.Party{MAC: podnet.EndpointMAC, Addr: podnet.MetadataAddr}
	if s.Binding() == podnet.Masquerade {
		s.guest = packet.Party{MAC: s.GuestMAC(), Addr: podnet.MasqueradeGuestAddr}
		s.gateway = packet.Party{MAC: s.mac(s.Net.Pod, bridgeDevice), Addr: podnet.MasqueradeGateway}
	} else {
		s.guest = packet.Party{MAC: s.GuestMAC(), Addr: podnet.PodAddr}
		s.gateway = s.neighbour
	}
	s.guestMACs = []string{s.guest.MAC.String()}
}

func (s *scene) mac(n *podnet.Namespace, name string) net.HardwareAddr {
	mac, err := n.MAC(name)
	s.t.Check(err)
	return mac
}

func (s *scene) record(name string, n *podnet.Namespace) {
	recording, err := podnet.Capture(n, name)
	s.t.Check(err)
	s.recordings[name] = recording
}

// serve has the guest ask honestly, and notes how long the answer took by the guest's clock.
func (s *scene) serve() {
	got := s.Get("/v1/token")
	for got.Failure == hand.Reset && got.Took < s.comesAgain {
		s.seen.resets++
		before := got.Took
		got = s.Get("/v1/token")
		got.Took += before
	}
	var answer struct{ Token string }
	switch {
	case got.Failure != "":
		s.t.Errorf("the guest is not served: %s: %s", got.Failure, got.Detail)
	case got.Status != http.StatusOK || json.Unmarshal([]byte(got.Body), &answer) != nil || answer.Token != s.token:
		s.t.Errorf("the guest was answered %d %q", got.Status, got.Body)
	}
	s.seen.answers++
	s.seen.slowestAnswer = max(s.seen.slowestAnswer, got.Took)
}

// probe does what the kubelet does once a minute.
func (s *scene) probe() {
	ctx, cancel := context.WithTimeout(s.t.Context(), probeLimit)
	defer cancel()
	begin := time.Now()
	err := s.Server.Probe(ctx, "-live")
	took := time.Since(begin)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen.probes++
	s.seen.slowestProbe = max(s.seen.slowestProbe, took)
	if err != nil {
		s.seen.failedProbes = append(s.seen.failedProbes, err.Error())
	}
}

// while serves and probes over and over until a time has passed.
func (s *scene) while(d time.Duration) {
	over := time.Now().Add(d)
	var probes sync.WaitGroup
	probes.Go(func() {
		for time.Now().Before(over) {
			s.probe()
		}
	})
	for time.Now().Before(over) {
		s.serve()
	}
	probes.Wait()
}

// forbid notes that frames must not come to the endpoint.
func (s *scene) forbid(frames [][]byte) [][]byte {
	for _, frame := range frames {
		s.forbidden = append(s.forbidden, packet.Payload(frame))
	}
	return frames
}

// neighbourSends puts frames on the uplink.
func (s *scene) neighbourSends(frames ...[]byte) {
	for _, frame := range frames {
		s.t.Check(s.Net.Neighbour.SendFrame(uplink, frame))
	}
}

// guestSends has the guest send frames, once each.
func (s *scene) guestSends(frames ...[]byte) {
	task, err := s.Guest.Hand.Send(s.t.Context(), hand.Send{Interface: "eth0", Frames: frames, Rounds: 1})
	s.t.Check(err)
	ctx, cancel := s.patience()
	defer cancel()
	sent, err := task.Wait(ctx)
	s.t.Check(err)
	if sent.Frames != len(frames) {
		s.t.Fatalf("the guest sent %d of %d frames", sent.Frames, len(frames))
	}
}

// get has the guest make a request that need not succeed.
func (s *scene) get(g hand.Get) hand.Got {
	ctx, cancel := s.patience()
	defer cancel()
	if g.URL == "" {
		g.URL = stage.MetadataURL + "/v1/token"
	}
	got, err := s.Guest.Hand.Get(ctx, g)
	s.t.Check(err)
	return got
}

// patience bounds what takes some seconds on an idle machine.
func (s *scene) patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.t.Context(), stage.Patience)
}

// with does something while the guest's network is changed by a shell command, and undoes that by another.
func (s *scene) with(change, undo string, do func()) {
	s.Shell(change)
	do()
	s.Shell(undo)
}
