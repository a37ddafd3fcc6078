// Package node hands the pod's network namespace over to the agent of its node, which
// gives the guest its path to the server, and hears from it how far that is.
package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// Pod is what the agent needs to know: how the guest is to be reached, and, for its
// log, who the pod is.
type Pod struct {
	BridgeName      string `json:"bridgeName"`
	PreferredBridge string `json:"preferredBridge"`
	Network         string `json:"network"`
	RedirectPort    uint16 `json:"redirectPort"`
	Namespace       string `json:"namespace"`
	PodName         string `json:"pod"`
	VMName          string `json:"vm"`
}

// version is that of the message to the agent.
const version = 1

// state is what the agent says of its work.
type state struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
}

// The states that the agent tells.
const (
	waiting = "waiting"
	wired   = "wired"
	failed  = "failed"
)

const (
	// maxLine bounds what the agent says at a time, in bytes.
	maxLine = 4 << 10
	// maxReason bounds what is kept of a reason, in bytes.
	maxReason = 1 << 10
	// Of the log: lines at once, and then one each lineEvery.
	linesAtOnce, lineEvery = 20, time.Minute
	// acceptAgain is when to accept again after that has failed.
	acceptAgain = time.Second
	// sendWithin bounds how long the agent may take to take the message.
	sendWithin = 5 * time.Second
	// comesAgain is how long after it has refused the pod an agent may come again.
	comesAgain = time.Minute
)

// Agent is what the server knows of the agent. nil: the pod is wired by another.
type Agent struct {
	log *slog.Logger

	mu    sync.Mutex
	state state
	lines int       // that may still be logged
	since time.Time // when the last of them was added
}

// NewAgent returns what is known before [Agent.Serve].
func NewAgent(log *slog.Logger) *Agent {
	return &Agent{log: log, lines: linesAtOnce, since: time.Now()}
}

// Lack says why no guest is served yet, and whether the agent has failed: otherwise
// it waits, or there is none. Empty: the guest is served.
func (a *Agent) Lack() (reason string, hasFailed bool) {
	if a == nil {
		return "", false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state.State == wired {
		return "", false
	}
	return a.state.Reason, a.state.State == failed
}

// become notes a state, and logs it where it is news.
func (a *Agent) become(now state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now == a.state {
		return
	}
	a.state = now
	earned := int(time.Since(a.since) / lineEvery)
	a.lines, a.since = min(a.lines+earned, linesAtOnce), a.since.Add(time.Duration(earned)*lineEvery)
	if a.lines == 0 {
		return
	}
	a.lines--
	switch now.State {
	case wired:
		a.log.Info("wired by the agent of this node", "lacks", now.Reason)
	case failed:
		a.log.Error("no guest is served", "reason", now.Reason)
	default:
		a.log.Info("no guest is served yet", "reason", now.Reason)
	}
}

// noAgent is the reason while no agent is connected.
const noAgent = "no agent of this node is connected; check that the DaemonSet imds-node-agent has a pod on this node"

// Serve hands the pod over to each agent that connects to the socket at path, until
// ctx ends. One is connected at a time: another waits until the first one's connection
// ends, which the kernel sees to when its process ends, so that two never wire the
// same pod. Where there can be no socket it says so in the log and in [Agent.Lack]: it
// is no reason to end, since a pod that is wired already is still served.
func (a *Agent) Serve(ctx context.Context, path string, pod Pod) {
	listener, err := listen(path)
	if err != nil {
		a.become(state{failed, err.Error()})
		return
	}
	a.become(state{waiting, noAgent})
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return
		}
		listener.SetDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.become(state{waiting, noAgent})
			continue
		}
		if err != nil { // too many files, which may end
			a.become(state{failed, err.Error()})
			time.Sleep(acceptAgain)
			continue
		}
		if err := a.converse(ctx, conn, pod); err != nil {
			a.become(state{waiting, err.Error()})
		}
		// An agent that refuses the pod ends the connection, and comes again: its reason
		// stands until then, or until it does not come.
		if _, hasFailed := a.Lack(); hasFailed {
			listener.SetDeadline(time.Now().Add(comesAgain))
		} else {
			a.become(state{waiting, noAgent})
		}
	}
}

// listen makes the socket in the place of an old one. Who watches for it finds it only
// when everyone may connect.
func listen(path string) (*net.UnixListener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !os.IsNotExist(err) {
		return nil, unusable(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh})
	if err != nil {
		return nil, unusable(err)
	}
	listener.SetUnlinkOnClose(false) // of a name that it no longer has
	err = os.Chmod(fresh, 0o666)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		listener.Close()
		return nil, unusable(err)
	}
	return listener, nil
}

func unusable(err error) error {
	return fmt.Errorf("IMDS_NODE_SOCKET: %w; mount a writable emptyDir with the name imds-node there", err)
}

// converse hands the pod over, and listens to what the agent says until the connection
// or ctx ends.
func (a *Agent) converse(ctx context.Context, conn *net.UnixConn, pod Pod) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := handOver(conn, pod); err != nil {
		return fmt.Errorf("hand over the network namespace: %w", err)
	}
	if _, hasFailed := a.Lack(); !hasFailed {
		a.become(state{waiting, "the agent of this node has not answered yet"})
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	for lines.Scan() {
		said, err := parse(lines.Bytes())
		if err != nil {
			return err
		}
		a.become(said)
	}
	if ctx.Err() != nil {
		return nil
	}
	return lines.Err()
}

// parse reads a line of the agent. Its reason becomes one that fits the log and an
// answer, with what it is a reason of.
func parse(line []byte) (said state, err error) {
	if json.Unmarshal(line, &said) != nil || said.State != waiting && said.State != wired && said.State != failed {
		return said, fmt.Errorf("the agent of this node says %s, which is not a known state", quote.Text(string(line)))
	}
	reason := strings.ToValidUTF8(said.Reason[:min(len(said.Reason), maxReason)], "")
	said.Reason = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, reason)
	switch said.State {
	case waiting:
		said.Reason = "the agent of this node waits for: " + said.Reason
	case failed:
		said.Reason = "the agent of this node failed: " + said.Reason
	}
	return said, nil
}

// handOver sends the one message.
func handOver(conn *net.UnixConn, pod Pod) error {
	network, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer network.Close()
	message, err := json.Marshal(struct {
		Version int `json:"version"`
		Pod
	}{version, pod})
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(sendWithin))
	_, _, err = conn.WriteMsgUnix(append(message, '\n'), syscall.UnixRights(int(network.Fd())), nil)
	return err
}
