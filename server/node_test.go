package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet/netnstest"
)

// As the sidecar runs where an agent of the node wires it: it hands over its network
// namespace, though nobody may look into its process; what the agent says is in the
// log and in /healthz, and no reason to restart it.
func TestSidecarWiredByAnAgent(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		allowPort80(t)
		volume := t.TempDir()
		for _, folder := range []string{filepath.Dir(volume), volume} { // as the kubelet's emptyDir
			if err := os.Chmod(folder, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		variables := sidecarEnvironment(t)
		variables["IMDS_NODE_SOCKET"] = filepath.Join(volume, "imds.sock")
		variables["IMDS_BRIDGE_NAME"] = "k6t-eth0"
		s := start(t, asSidecar(t, program(variables)), imdsAddr)
		s.log.wait(t, "no agent of this node is connected; check that the DaemonSet imds-node-agent has a pod on this node")

		agent, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: variables["IMDS_NODE_SOCKET"]})
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close()
		message, control := make([]byte, 4096), make([]byte, 64)
		agent.SetDeadline(time.Now().Add(10 * time.Second))
		n, controlled, _, _, err := agent.ReadMsgUnix(message, control)
		if err != nil {
			t.Fatal(err)
		}
		if want := `"bridgeName":"k6t-eth0","preferredBridge":"","network":"","redirectPort":0,"namespace":"tenant","pod":"virt-launcher-fedora-x7k2p","vm":"fedora"}`; !strings.Contains(string(message[:n]), want) {
			t.Errorf("the message is %q, want %q in it", message[:n], want)
		}
		wantOwnNetwork(t, control[:controlled])

		makeEndpoint(t, netnstest.New(t))
		s.log.wait(t, "msg=listening")
		s.log.wait(t, "msg=listening")
		for _, c := range []struct{ said, logged, healthz string }{
			{`{"state":"waiting","reason":"a bridge"}`, "waits for: a bridge", "\r\n\r\nOK; no guest is served yet: the agent of this node waits for: a bridge"},
			{`{"state":"failed","reason":"no memory"}`, "failed: no memory", "\"the agent of this node failed: no memory\"}\n"},
			{`{"state":"wired","reason":""}`, "wired by the agent", "\r\n\r\nOK"},
		} {
			fmt.Fprintln(agent, c.said)
			s.log.wait(t, c.logged)
			if answer := probeByHand(t, imdsAddr); !strings.HasSuffix(answer, c.healthz) {
				t.Errorf("after %s /healthz answers %q, want %q", c.said, answer, c.healthz)
			}
			if output, err := asSidecar(t, program(variables, "probe", "-live")).CombinedOutput(); err != nil {
				t.Errorf("after %s its life is doubted: %v: %s", c.said, err, output)
			}
			output, err := asSidecar(t, program(variables, "probe")).CombinedOutput()
			if isFailed := strings.Contains(c.said, "failed"); isFailed != (err != nil) {
				t.Errorf("after %s the probe: %v: %s", c.said, err, output)
			}
		}
		s.stop(t)
	})
}

// wantOwnNetwork checks that a message brought the network namespace of the caller.
func wantOwnNetwork(t *testing.T, control []byte) {
	t.Helper()
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(descriptors) != 1 {
		t.Fatalf("descriptors %v, %v", descriptors, err)
	}
	network := os.NewFile(uintptr(descriptors[0]), "network")
	defer network.Close()
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := network.Stat(); err != nil || !os.SameFile(own, got) {
		t.Errorf("another file than the network namespace was handed over (%v)", err)
	}
}

// probeByHand asks /healthz as the kubelet's probe does, and returns the answer.
func probeByHand(t *testing.T, address netip.AddrPort) string {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Timeout: 5 * time.Second}
	conn, err := dialer.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address.Addr())
	var answer strings.Builder
	if _, err := io.Copy(&answer, conn); err != nil {
		t.Fatal(err)
	}
	return answer.String()
}
