package attacks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// evidence is what was seen during an attack.
type evidence struct {
	answers       int
	resets        int           // of them: those that came at the second attempt
	slowestAnswer time.Duration // by the guest's clock

	probes       int
	slowestProbe time.Duration // with the start of its process
	failedProbes []string

	// Each is something that should not have been.
	reached, answered, leaked []string
	// recorded counts the frames at each place.
	recorded map[string]int
}

func newEvidence() *evidence { return &evidence{recorded: map[string]int{}} }

// frames is the figure of a place.
func (e *evidence) frames(place string) string { return fmt.Sprintf("0 of %d", e.recorded[place]) }

// judge ends the recordings and looks for what should not be in them.
func (s *scene) judge() {
	for place, recording := range s.recordings {
		frames, err := recording.Stop()
		if err != nil {
			s.t.Errorf("recording of %s: %v", place, err)
		}
		if len(frames) == 0 && place != loopback {
			s.t.Errorf("the recording of %s saw nothing at all, so it proves nothing", place)
		}
		s.seen.recorded[place] = len(frames)
		for _, f := range frames {
			s.rule(place)(f)
		}
	}
}

// rule is what a frame is judged by at a place.
func (s *scene) rule(place string) func(podnet.Frame) {
	switch place {
	case uplink:
		return s.judgeUplink
	case endpointDevice:
		return s.judgeEndpoint
	case guestTap:
		return s.judgeGuest
	default: // the pod's own interfaces
		return s.judgePod
	}
}

// judgeUplink: nothing of ours comes out of the pod.
func (s *scene) judgeUplink(f podnet.Frame) {
	if !f.Outgoing && stage.IsOurs(f) {
		s.seen.leaked = append(s.seen.leaked, f.String())
	}
}

// judgeEndpoint: the guest alone is heard, and nothing of what was forbidden.
func (s *scene) judgeEndpoint(f podnet.Frame) {
	if f.Outgoing {
		return
	}
	if !slices.Contains(s.guestMACs, source(f)) {
		s.seen.reached = append(s.seen.reached, f.String())
	}
	for _, payload := range s.forbidden {
		// Short frames are padded.
		if bytes.HasPrefix(packet.Payload(f.Data), payload) {
			s.seen.reached = append(s.seen.reached, f.String())
		}
	}
}

// judgeGuest: whatever speaks for the address comes from the endpoint, and whatever comes from the endpoint speaks
// for the address. In a VLAN, which is another network, others may say what they like, but not with our MAC.
func (s *scene) judgeGuest(f podnet.Frame) {
	if inVLAN(f) && source(f) != podnet.EndpointMAC.String() {
		return
	}
	if f.Outgoing && (source(f) == podnet.EndpointMAC.String()) != speaksForAddress(f) {
		s.seen.answered = append(s.seen.answered, f.String())
	}
}

// judgePod: no answer comes to the pod's own stack, but those to its own probes. They ask from 127.0.0.1 and one of
// the ports that the kernel chooses from.
func (s *scene) judgePod(f podnet.Frame) {
	if f.Outgoing || etherType(f) != unix.ETH_P_IP || !speaksForAddress(f) {
		return
	}
	const header, chosen = 20, 32768
	packet := packet.Payload(f.Data)
	to := netip.AddrFrom4([4]byte(packet[16:20]))
	probe := to.IsLoopback() && packet[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(packet[header+2:]) >= chosen
	if !probe {
		s.seen.answered = append(s.seen.answered, "in the pod: "+f.String())
	}
}

// inVLAN says whether the frame's outermost tag gives it more than a priority.
func inVLAN(f podnet.Frame) bool {
	const identifier = 0x0fff
	tag := binary.BigEndian.Uint16(f.Data[12:])
	return (tag == unix.ETH_P_8021Q || tag == unix.ETH_P_8021AD) && binary.BigEndian.Uint16(f.Data[14:])&identifier != 0
}

// speaksForAddress says whether one of the endpoint's addresses is the frame's source, or its ARP sender.
func speaksForAddress(f podnet.Frame) bool {
	payload, address := packet.Payload(f.Data), podnet.MetadataAddr.AsSlice()
	switch etherType(f) {
	case unix.ETH_P_IP:
		return len(payload) >= 16 && bytes.Equal(payload[12:16], address)
	case unix.ETH_P_ARP:
		return len(payload) >= 18 && bytes.Equal(payload[14:18], address)
	case unix.ETH_P_IPV6:
		return len(payload) >= 24 && bytes.Equal(payload[8:24], podnet.MetadataIPv6Addr.AsSlice())
	}
	return false
}

// source is the frame's source MAC as text.
func source(f podnet.Frame) string { return net.HardwareAddr(f.Data[6:12]).String() }

// etherType is that of what follows the VLAN tags.
func etherType(f podnet.Frame) uint16 {
	behind := len(f.Data) - len(packet.Payload(f.Data))
	return binary.BigEndian.Uint16(f.Data[behind-2:])
}

// answered notes an answer that should not have been.
func (s *scene) answered(format string, args ...any) {
	s.seen.answered = append(s.seen.answered, fmt.Sprintf(format, args...))
}
