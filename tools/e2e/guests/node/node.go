// Package node has checks of what can only be done to a whole machine: its clock jumps, its kernel lacks modules. A
// guest plays the node, with a VM's pod on it that package podnet makes there, and the sidecars in that.
package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/guestimage"
	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// podProgram makes the pod on the node.
const podProgram = "github.com/example/kubevirt-imds/tools/e2e/guests/node/program"

// Lists of the node's modules, in the order in which they can be loaded: what a pod's network is made of, and what
// imds-init needs besides.
const (
	network     = "network"
	nfnetlink   = "nfnetlink"
	nfTables    = "nf_tables"
	expressions = "expressions"
)

var moduleLists = []guestimage.ModuleList{
	{Name: network, Modules: []string{"bridge", "veth", "tun", "dummy"}},
	{Name: nfnetlink, Modules: []string{"nfnetlink"}},
	{Name: nfTables, Modules: []string{"nf_tables"}},
	// Without the second, nf_tables takes no rule of the bridge family that names an interface.
	{Name: expressions, Modules: []string{"nft_ct", "nft_meta_bridge"}},
}

// makeImage makes what a node boots.
func makeImage(ctx context.Context, s *stage.Stage) (guestimage.Image, error) {
	folder, err := os.MkdirTemp(s.Folder(), "node-")
	if err != nil {
		return guestimage.Image{}, err
	}
	program := filepath.Join(folder, "node-pod")
	if err := cluster.Compile(ctx, podProgram, program); err != nil {
		return guestimage.Image{}, err
	}
	return s.Image().Extend(filepath.Join(folder, "initramfs"), guestimage.Extras{
		Programs: map[string]string{
			"node-pod":    program,
			"imds-init":   s.Program("imds-init"),
			"imds-server": s.Program("imds-server"),
		},
		Modules: moduleLists,
	})
}

// node is a guest that plays a node, and the network namespaces on it are those of podnet: pod, guest, neighbour.
type node struct {
	t     *suite.T
	guest *qemu.Guest
}

// start boots a node with lists of modules, and makes the pod on it, in bridge binding. No sidecar runs yet.
func start(t *suite.T, s *stage.Stage, lists ...string) *node {
	image, err := makeImage(t.Context(), s)
	t.Check(err)
	outside, err := podnet.NewNamespace("node")
	t.Check(err)
	t.Cleanup(func() { outside.Close() })
	guest, err := qemu.Boot(t.Context(), qemu.Options{Image: image, Namespace: outside, Memory: 256})
	t.Check(err)
	n := &node{t: t, guest: guest}
	t.Cleanup(n.end)
	for _, list := range lists {
		n.load(list)
	}
	n.shell("mkdir /tmp/tokens && setsid /node-pod /tmp </dev/null >/tmp/node-pod.log 2>&1 &")
	n.await("test -e /tmp/ready")
	return n
}

// end shows, where the check has failed, what was logged.
func (n *node) end() {
	if n.t.Failed() {
		logs, err := n.guest.Hand.Shell(context.WithoutCancel(n.t.Context()), "cd /tmp; tail -n 40 *.log; ip link; nsenter -n/tmp/pod ip addr")
		n.t.Logf("on the node (%v): %s", err, logs)
		n.t.Logf("its console:\n%s", n.guest.Console())
	}
	if err := n.guest.Close(); err != nil {
		n.t.Errorf("%v", err)
	}
}

func (n *node) load(list string) { n.shell("load " + list) }

// patience is how long a step may take on the node that takes a second or two where its processor has no other to
// share with.
const patience = 2 * time.Minute

// shell runs a command on the node that must succeed, and returns what it wrote.
func (n *node) shell(command string) string {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience+stage.Patience)
	defer cancel()
	ran, err := n.guest.Hand.Run(ctx, hand.Run{Command: command, Limit: patience})
	n.t.Check(err)
	if ran.Exit != 0 {
		n.t.Fatalf("on the node, %s: exit status %d (-1: not within %s): %s", command, ran.Exit, patience, ran.Output)
	}
	return strings.TrimSpace(ran.Output)
}

// await waits on the node for what no event tells.
func (n *node) await(condition string) {
	n.shell("until " + condition + "; do usleep 25000; done")
}

// startSidecars starts both in the pod, imds-server as its user.
func (n *node) startSidecars() {
	n.shell(`setsid nsenter -n/tmp/pod /imds-init </dev/null >>/tmp/imds-init.log 2>&1 &
		setsid nsenter -n/tmp/pod -S 65532 -G 65532 env IMDS_TOKEN_PATH=/tmp/tokens/token IMDS_NAMESPACE=tenant \
			IMDS_POD_NAME=virt-launcher-vm IMDS_VM_NAME=vm IMDS_SA_NAME=vm \
			/imds-server </dev/null >>/tmp/imds-server.log 2>&1 &`)
}

// probe is the liveness probe.
func (n *node) probe() error {
	_, err := n.guest.Hand.Shell(n.t.Context(), "nsenter -n/tmp/pod -S 65532 -G 65532 /imds-server probe -live")
	return err
}

// logged returns the lines of a sidecar's log that have a text in them.
func (n *node) logged(sidecar, text string) []string {
	output := n.shell("grep -F '" + text + "' /tmp/" + sidecar + ".log || true")
	if output == "" {
		return nil
	}
	return strings.Split(output, "\n")
}

// rotate puts a token in place of the present one, issued now by the node's clock.
func (n *node) rotate(id string, lifetime time.Duration) {
	token := stage.Token(id, "https://kubernetes.default.svc.cluster.local", n.now(), lifetime)
	n.shell("umask 022; printf %s " + token + " >/tmp/tokens/next && mv /tmp/tokens/next /tmp/tokens/token")
}

// now is the time by the node's clock, in whole seconds.
func (n *node) now() time.Time {
	seconds, err := strconv.ParseInt(n.shell("date +%s"), 10, 64)
	n.t.Check(err)
	return time.Unix(seconds, 0)
}

func (n *node) setClock(to time.Time) { n.shell(fmt.Sprintf("date -s @%d", to.Unix())) }

// get asks from inside a namespace on the node. A path alone is the endpoint's.
func (n *node) get(namespace, url string, limit time.Duration) hand.Got {
	got, err := n.guest.Hand.Get(n.t.Context(), request(namespace, url, limit))
	n.t.Check(err)
	return got
}

func request(namespace, url string, limit time.Duration) hand.Get {
	if strings.HasPrefix(url, "/") {
		url = stage.MetadataURL + url
	}
	return hand.Get{URL: url, Namespace: "/tmp/" + namespace, Limit: limit}
}

// askLimit is how long one of many requests may take, for the same reason.
const askLimit = 20 * time.Second

// ask begins to ask ten times a second.
func (n *node) ask(namespace, url string, keep bool) *hand.Task[hand.Asked] {
	task, err := n.guest.Hand.Ask(n.t.Context(), hand.Ask{Get: request(namespace, url, askLimit), Rate: 10, Keep: keep})
	n.t.Check(err)
	return task
}

func (n *node) stop(asking *hand.Task[hand.Asked]) hand.Asked {
	ctx, cancel := context.WithTimeout(n.t.Context(), stage.Patience)
	defer cancel()
	asked, err := asking.Stop(ctx)
	n.t.Check(err)
	return asked
}
