package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var pod = Pod{BridgeName: "k6t-eth0", RedirectPort: 60080, Namespace: "tenant", PodName: "virt-launcher-vm", VMName: "vm"}

// serving hands a pod over at a socket until the test ends.
func serving(t *testing.T) (agent *Agent, path string, lines *log) {
	t.Helper()
	lines = &log{written: make(chan string, 1000)}
	agent, path = NewAgent(slog.New(slog.NewTextHandler(lines, nil))), filepath.Join(t.TempDir(), "imds.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { agent.Serve(ctx, path, pod); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	lines.wait(t, "no agent of this node is connected")
	return agent, path, lines
}

// log is a log whose lines can be waited for.
type log struct{ written chan string }

func (l *log) Write(line []byte) (int, error) {
	l.written <- string(line)
	return len(line), nil
}

func (l *log) wait(t *testing.T, part string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line := <-l.written:
			if strings.Contains(line, part) {
				return
			}
		case <-deadline:
			t.Fatalf("the log has no %q", part)
		}
	}
}

func connect(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// receive reads the message, and returns it with its one descriptor.
func receive(t *testing.T, conn *net.UnixConn) (message string, network *os.File) {
	t.Helper()
	text, control := make([]byte, 4096), make([]byte, 64)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, controlled, _, _, err := conn.ReadMsgUnix(text, control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := syscall.ParseSocketControlMessage(control[:controlled])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(descriptors) != 1 {
		t.Fatalf("descriptors %v, %v", descriptors, err)
	}
	network = os.NewFile(uintptr(descriptors[0]), "network")
	t.Cleanup(func() { network.Close() })
	return string(text[:n]), network
}

func TestHandsOverTheNetworkNamespace(t *testing.T) {
	_, path, _ := serving(t)
	message, network := receive(t, connect(t, path))
	const want = `{"version":1,"bridgeName":"k6t-eth0","preferredBridge":"","network":"","redirectPort":60080,"namespace":"tenant","pod":"virt-launcher-vm","vm":"vm"}` + "\n"
	if message != want {
		t.Errorf("the message is %q, want %q", message, want)
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := network.Stat(); err != nil || !os.SameFile(own, got) {
		t.Errorf("another file than the network namespace was handed over (%v)", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
}

func TestTellsWhatTheAgentSays(t *testing.T) {
	agent, path, lines := serving(t)
	want := func(reason string, failed bool) {
		t.Helper()
		if got, hasFailed := agent.Lack(); got != reason || hasFailed != failed {
			t.Errorf("lacks %q, failed: %t; want %q, %t", got, hasFailed, reason, failed)
		}
	}
	want(noAgent, false)
	conn := connect(t, path)
	receive(t, conn)
	for _, c := range []struct{ said, logged, lack string }{
		{`{"state":"waiting","reason":"a bridge"}`, `reason="the agent of this node waits for: a bridge"`, "the agent of this node waits for: a bridge"},
		{`{"state":"failed","reason":"no\nmemory"}`, `level=ERROR msg="no guest is served" reason="the agent of this node failed: no memory"`, "the agent of this node failed: no memory"},
		{`{"state":"wired","reason":""}`, `msg="wired by the agent of this node"`, ""},
	} {
		fmt.Fprintln(conn, c.said)
		lines.wait(t, c.logged)
		want(c.lack, strings.Contains(c.said, "failed"))
	}
	conn.Close()
	lines.wait(t, noAgent)
	want(noAgent, false)
}

// One agent at a time: two would repair each other's work.
func TestASecondAgentWaits(t *testing.T) {
	_, path, _ := serving(t)
	first := connect(t, path)
	receive(t, first)
	second := connect(t, path)
	second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Fatalf("the second agent was sent %d bytes, %v", n, err)
	}
	first.Close()
	receive(t, second)
}

// Whoever connects is bounded, and the next one is served.
func TestWhatIsNoState(t *testing.T) {
	_, path, lines := serving(t)
	for said, logged := range map[string]string{
		"hello\n":                      "which is not a known state",
		`{"state":"happy"}` + "\n":     "which is not a known state",
		strings.Repeat("x", 2*maxLine): "token too long",
	} {
		conn := connect(t, path)
		receive(t, conn)
		io.WriteString(conn, said)
		lines.wait(t, logged)
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("after %.20q the connection is still there", said)
		}
	}
	receive(t, connect(t, path))
}

func TestLogIsBounded(t *testing.T) {
	lines := &log{written: make(chan string, 1000)}
	agent := NewAgent(slog.New(slog.NewTextHandler(lines, nil)))
	for n := range 500 {
		agent.become(state{failed, fmt.Sprint(n)})
	}
	if got := len(lines.written); got != linesAtOnce {
		t.Errorf("%d lines, want %d", got, linesAtOnce)
	}
	if reason, _ := agent.Lack(); reason != "499" {
		t.Errorf("the reason is %q, want the last", reason)
	}
}

// A server that is started again takes the place of the old socket, and one that was
// stopped while it made its socket is in nobody's way.
func TestAnOldSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "imds.sock")
	for _, old := range []string{path, path + ".new"} {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: old})
		if err != nil {
			t.Fatal(err)
		}
		listener.SetUnlinkOnClose(false)
		listener.Close()
	}
	listener, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect(t, path)
}

func TestWithoutAVolume(t *testing.T) {
	agent := NewAgent(slog.New(slog.DiscardHandler))
	agent.Serve(t.Context(), filepath.Join(t.TempDir(), "missing", "imds.sock"), pod)
	if reason, failed := agent.Lack(); !failed || !strings.Contains(reason, "mount a writable emptyDir with the name imds-node") {
		t.Errorf("lacks %q, failed: %t", reason, failed)
	}
}

func TestMessageFitsTheAgent(t *testing.T) {
	longest := Pod{BridgeName: strings.Repeat("b", 15), PreferredBridge: strings.Repeat("b", 15), RedirectPort: 65535,
		Namespace: strings.Repeat("n", 63), PodName: strings.Repeat("p", 253), VMName: strings.Repeat("v", 253)}
	if message, err := json.Marshal(longest); err != nil || len(message) > 1000 {
		t.Errorf("%d bytes, %v", len(message), err)
	}
}

// That no agent is used is no lack.
func TestWithoutAnAgent(t *testing.T) {
	var agent *Agent
	if reason, failed := agent.Lack(); reason != "" || failed {
		t.Errorf("lacks %q, %t", reason, failed)
	}
}

// An agent that refuses the pod says why, ends the connection, and comes again. Its
// reason stands meanwhile, until an agent wires the pod.
func TestReasonOfARefusalStands(t *testing.T) {
	agent, path, lines := serving(t)
	for range 3 {
		conn := connect(t, path)
		receive(t, conn)
		fmt.Fprintln(conn, `{"state":"failed","reason":"the pod has a user namespace"}`)
		conn.Close()
		for { // until the next may come
			next := connect(t, path)
			receive(t, next)
			if reason, hasFailed := agent.Lack(); !hasFailed || !strings.Contains(reason, "user namespace") {
				t.Fatalf("while it comes again: %v, %q", hasFailed, reason)
			}
			next.Close()
			break
		}
	}
	lines.wait(t, "user namespace")
	conn := connect(t, path)
	receive(t, conn)
	fmt.Fprintln(conn, `{"state":"wired","reason":""}`)
	lines.wait(t, "wired by the agent")
	conn.Close()
	lines.wait(t, "no agent of this node is connected")
}
