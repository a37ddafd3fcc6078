package stage

import (
	"bytes"
	"net"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// solicitedMAC is the multicast MAC of those who look for the IPv6 address (RFC 4291 section 2.7.1, RFC 2464 section
// 7).
var solicitedMAC = net.HardwareAddr{0x33, 0x33, 0xff, 0xfe, 0xa9, 0xfe}

// IsOurs says whether there is anything of the project's in a frame, wherever it is: one of its MACs, or its IPv6
// address, or its IPv4 address where such addresses stand, but in a VLAN, where that is somebody else's.
func IsOurs(f podnet.Frame) bool {
	for _, ours := range [][]byte{podnet.EndpointMAC, podnet.PortMAC, solicitedMAC, podnet.MetadataIPv6Addr.AsSlice()} {
		if bytes.Contains(f.Data, ours) {
			return true
		}
	}
	return f.ConcernsMetadata()
}

// Watch records an uplink, by the name of the neighbour's end, from now until the end of the check, which fails
// if anything of the project's has come out of the pod. [Stage.New] watches the first.
func (v *VM) Watch(uplink string) {
	recording, err := podnet.Capture(v.Net.Neighbour, uplink)
	Check(v.t, err)
	v.later(func() {
		frames, err := recording.Stop()
		if err != nil {
			v.t.Errorf("capture of %s: %v", uplink, err)
		}
		v.Frames += len(frames)
		var ours []podnet.Frame
		for _, f := range frames {
			// What the neighbour has sent is its own doing.
			if !f.Outgoing && IsOurs(f) && !(v.Expected != nil && v.Expected(f)) {
				ours = append(ours, f)
			}
		}
		if len(ours) > 0 {
			v.t.Errorf("%d of %d frames on the uplink %s are ours, the first: %s", len(ours), len(frames), uplink, ours[0])
		}
	})
}
