package stage

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/process"
)

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
	p, err := process.Start(v.Net.Pod, c)
	if err == nil {
		err = p.Err()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", command, err, said.Bytes())
	}
	return said.String(), err
}
