package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// IsOurs says whether there is anything of the project's in a frame, wherever it is: one of its MACs, or its IPv6
// address, or its IPv4 address where such addresses stand, but in a VLAN, where that is somebody else's. The multicast MAC
// of those who look for the IPv6 address says nothing: a guest that has had our MAC looks by the same for an address of
// its own.
func IsOurs(f podnet.Frame) bool {
	for _, ours := range [][]byte{podnet.EndpointMAC, podnet.PortMAC, podnet.GuestsMAC, podnet.MetadataIPv6Addr.AsSlice()} {
		if bytes.Contains(f.Data, ours) {
			return true
		}
	}
	return f.ConcernsMetadata()
}

// Watch records an uplink, by the name of the neighbour's end, from now until the end of the check, which fails
// if anything of the project's has come out of the pod. [Environment.New] watches the first.
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

// commandLimit is how long a command in the pod may take.
const commandLimit = 10 * time.Second

// consoleTail is how much of the guest's console is shown, in bytes.
const consoleTail = 2000

// Describe is what a person wants to see of a VM whose check has failed: the sidecars' logs, the pod's links, routes
// and rules, and the end of the guest's console.
func (v *VM) Describe() string {
	var text strings.Builder
	section := func(title, content string) {
		fmt.Fprintf(&text, "--- %s\n%s\n", title, strings.TrimSpace(content))
	}
	for _, c := range []*Sidecar{v.Init, v.Server} {
		section("log of "+c.Name, c.Log())
	}
	for _, command := range []string{"ip -d link", "ip addr", "ip route show table all", "bridge fdb", "nft list ruleset"} {
		output, err := v.InPod(command)
		if err != nil {
			output = err.Error()
		}
		section(command, output)
	}
	if v.Guest != nil {
		console := v.Guest.Console()
		section("console of the guest", console[max(0, len(console)-consoleTail):])
	}
	return text.String()
}

// InPod runs a shell command in the pod's network, such as one of ip or nft, and returns what it has written.
func (v *VM) InPod(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	var said bytes.Buffer
	c := exec.CommandContext(ctx, "sh", "-c", command)
	c.Stdout, c.Stderr = &said, &said
	err := v.Net.Pod.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", command, err, said.Bytes())
	}
	return said.String(), err
}
