package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/container"
)

// agentContainer is the agent as a container runtime runs it, in a network namespace
// that is the node's.
type agentContainer struct {
	logLines
	*container.Container
}

// startContainer starts a program of an image until the end of the test.
func startContainer(t *testing.T, network *podnet.Namespace, spec container.Spec) agentContainer {
	t.Helper()
	var err error
	spec.Scratch = t.TempDir()
	spec.ReadOnlyRoot, spec.NoNewPrivileges = true, true
	c := agentContainer{logLines: newLogLines()}
	log := c.readLog()
	c.Container, err = container.Start(network, spec, log)
	must(t, err)
	go func() {
		<-c.Done()
		log.Close()
	}()
	t.Cleanup(c.Kill)
	return c
}

// startAgentContainer starts the agent with what the DaemonSet gives it, and these
// capabilities.
func startAgentContainer(t *testing.T, n *node, network *podnet.Namespace, capabilities ...string) agentContainer {
	t.Helper()
	must(t, image.build())
	set, err := container.ParseCapabilities(capabilities...)
	must(t, err)
	return startContainer(t, network, container.Spec{
		Name: "agent", Image: image.folder, Command: []string{"/imds-init", "agent"},
		Mounts:       []container.Mount{{Source: n.folder, Target: "/pods", ReadOnly: true}},
		Env:          []string{isInit + "=true", "IMDS_PODS_DIR=/pods"},
		Capabilities: set,
	})
}

// serverSuffix makes of the image's folder that of imds-server's.
const serverSuffix = "-server"

// serverImage has imds-server in it.
var serverImage = sync.OnceValues(func() (string, error) {
	folder := image.folder + serverSuffix
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", filepath.Join(folder, "imds-server"), "../server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, said)
	}
	return folder, nil
})

// startServer starts imds-server in a pod, with what the pod's patch gives it.
func startServer(t *testing.T, n *node, uid string, pod *podnet.Pod) agentContainer {
	t.Helper()
	folder, err := serverImage()
	must(t, err)
	must(t, pod.Pod.Sysctl("net.ipv4.ip_unprivileged_port_start", "0"))
	return startContainer(t, pod.Pod, container.Spec{
		Name: "imds-server", Image: folder, Command: []string{"/imds-server"},
		Mounts: []container.Mount{{Source: n.volume(uid), Target: "/run/imds-node"}},
		Env: []string{"IMDS_NODE_SOCKET=/run/imds-node/imds.sock", "IMDS_NAMESPACE=tenant", "IMDS_POD_NAME=virt-launcher-vm",
			"IMDS_VM_NAME=vm", "IMDS_SA_NAME=default"},
		UID: 65532, GID: 65532,
	})
}

// askWho has the guest ask imds-server who it is.
func askWho(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	response, err := pod.Guest.HTTPClient().Get("http://169.254.169.254/v1/identity")
	must(t, err)
	response.Body.Close()
	if response.StatusCode != 200 {
		t.Errorf("the guest is answered %s", response.Status)
	}
}

// nodeNetwork is the network of a node of its own.
func nodeNetwork(t *testing.T) *podnet.Namespace { return newNamespace(t) }

// The whole way with the real programs, each with no more privileges than it is to
// have. The guest is served before, while and after one of them ends and starts again.
func TestAgentAndServerWithTheirPrivilegesAlone(t *testing.T) {
	n := newNode(t)
	network := nodeNetwork(t)
	pod := newPod(t, podnet.Options{Binding: podnet.Masquerade})
	n.addPod(t, "uid")
	server := startServer(t, n, "uid", pod)
	server.waitFor(t, "no agent of this node is connected")
	must(t, pod.Wire())
	must(t, pod.StartGuest())

	agent := startAgentContainer(t, n, network, "SYS_ADMIN", "NET_ADMIN")
	server.waitForEach(t, `msg="wired by the agent of this node"`, "msg=listening")
	askWho(t, pod)

	server.Kill()
	agent.waitFor(t, "let go")
	server = startServer(t, n, "uid", pod)
	server.waitForEach(t, `msg="wired by the agent of this node"`, "msg=listening")
	askWho(t, pod)

	// Another agent, of another version perhaps, changes nothing while the first is there.
	second := startAgentContainer(t, n, network, "SYS_ADMIN", "NET_ADMIN")
	second.waitFor(t, "imds-server said nothing within")
	agent.Kill()
	server.waitFor(t, "no agent of this node is connected")
	askWho(t, pod)
	server.waitFor(t, `msg="wired by the agent of this node"`)
	second.waitFor(t, "msg=wired")
	askWho(t, pod)
	if lines := agent.said(); strings.Contains(strings.Join(lines, "\n"), "msg=repaired") {
		t.Errorf("two agents wired the same pod: %q", lines)
	}
}

// Each of the agent's capabilities is needed.
func TestAgentLacksACapability(t *testing.T) {
	n := newNode(t)
	pod := newPod(t, podnet.Options{})
	server := handOver(t, n.addPod(t, "uid"), pod.Pod)
	agent := startAgentContainer(t, n, nodeNetwork(t), "NET_ADMIN")
	agent.waitFor(t, "enter a network namespace: operation not permitted; give the container the capability SYS_ADMIN")
	<-agent.Done()
	startAgentContainer(t, n, nodeNetwork(t), "SYS_ADMIN")
	server.await(t, stateFailed, "imds-init lacks NET_ADMIN")
}
