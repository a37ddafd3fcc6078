package stage

import (
	"context"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
)

// startContainer makes, in the guest, a network of its own behind the guest's NAT, as a container engine does, and
// writes the number of the process that holds it.
const startContainer = `
set -e
load nat
echo 1 >/proc/sys/net/ipv4/ip_forward
# The kernel names the other end: veth0.
ip link add nat0 type veth
unshare -n sleep 100000 >/dev/null 2>&1 &
holder=$!
# Until it has a network of its own it is in the guest's.
while [ "$(readlink /proc/$holder/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do usleep 10000; done
ip link set veth0 netns $holder
ip addr add 172.17.0.1/16 dev nat0
ip link set nat0 up
inside() { nsenter -t $holder -n "$@"; }
inside ip addr add 172.17.0.2/16 dev veth0
inside ip link set veth0 up
inside ip route add default via 172.17.0.1
echo $holder
`

// StartContainer makes a container's network in the guest. The prefix it returns has a shell command run in it.
func (v *VM) StartContainer() (prefix string) {
	holder := strings.TrimSpace(v.Shell(startContainer))
	ctx, cancel := context.WithTimeout(v.t.Context(), Patience)
	defer cancel()
	Check(v.t, v.Guest.Agent.NAT(ctx, guestagent.NAT{Interface: "eth0"}))
	return "nsenter -t " + holder + " -n "
}
