package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// node is a node's folder of pods, as its kubelet lays it out, and the agent that looks
// at it.
type node struct {
	folder, status string
	program        string // of the agent
	logLines
	process *exec.Cmd // nil: it does not run
}

// newNode makes a node whose agent does not run yet.
func newNode(t *testing.T) *node {
	t.Helper()
	podnet.Require(t)
	// Its name is short: a socket's path has no more than 107 bytes.
	folder, err := os.MkdirTemp("", "pods")
	must(t, err)
	// Not t.TempDir: a status that was due when the agent ended may still be written.
	status, err := os.MkdirTemp("", "status")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder); os.RemoveAll(status) })
	return &node{folder: folder, status: filepath.Join(status, "status"), program: "/proc/self/exe"}
}

// runningNode makes a node with its agent.
func runningNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.startAgent(t)
	return n
}

// startAgent starts the agent, in the network namespace of the test, which is the
// node's. It runs until the end of the test.
func (n *node) startAgent(t *testing.T, env ...string) {
	t.Helper()
	n.start(t, exec.Command(n.program, "agent"), env...)
	n.waitFor(t, "msg=starting")
}

func (n *node) start(t *testing.T, process *exec.Cmd, env ...string) {
	t.Helper()
	n.logLines, n.process = newLogLines(), process
	log := &lockedBuffer{written: make(chan struct{}, 1)}
	lines := n.readLog()
	process.Stderr = io.MultiWriter(log, lines)
	process.Env = append(os.Environ(), append(env, isInit+"=true", "IMDS_PODS_DIR="+n.folder, "IMDS_STATUS_FILE="+n.status, "GORACE=atexit_sleep_ms=0")...)
	must(t, process.Start())
	ended := make(chan error, 1)
	go func() {
		err := process.Wait()
		lines.Close()
		ended <- err
		close(ended)
	}()
	t.Cleanup(func() {
		process.Process.Kill()
		<-ended
		if t.Failed() {
			log.mu.Lock()
			defer log.mu.Unlock()
			t.Logf("log of the agent:\n%s", &log.text)
		}
	})
}

// stopAgent ends the agent by a signal, and returns when it is gone.
func (n *node) stopAgent(t *testing.T, signal os.Signal) {
	t.Helper()
	must(t, n.process.Process.Signal(signal))
	for range n.lines {
	}
}

// addPod makes the folders of a pod that asks for the agent, in the kubelet's order,
// and returns that of the volume.
func (n *node) addPod(t *testing.T, uid string) (volume string) {
	t.Helper()
	volume = n.volume(uid)
	must(t, os.MkdirAll(volume, 0o777))
	must(t, os.Chmod(volume, 0o777))
	must(t, os.Mkdir(filepath.Join(n.folder, uid, containersFolder), 0o750))
	return volume
}

func (n *node) volume(uid string) string { return filepath.Join(n.folder, uid, nodeFolder) }

// counts reads the status file once it says what is wanted.
func (n *node) awaitCounts(t *testing.T, want func(counts) bool) counts {
	t.Helper()
	var have counts
	deadline := time.Now().Add(time.Minute)
	for {
		content, err := os.ReadFile(n.status)
		if err == nil {
			have = counts{}
			must(t, json.Unmarshal(content, &have)) // it is never half written
			if want(have) {
				return have
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status file has %+v, %v", have, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// inside says whether a thread of the agent is in a network namespace.
func (n *node) inside(t *testing.T, network *podnet.Namespace) bool {
	t.Helper()
	id, err := namespaceAt(network.Path())
	must(t, err)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", n.process.Process.Pid))
	must(t, err)
	return slices.ContainsFunc(threads, func(thread string) bool {
		there, err := namespaceAt(thread)
		return err == nil && there == id // one that has ended is nowhere
	})
}

// awaitOutside waits until the agent has let go of a network namespace. The kernel may
// hold it up while it takes down the links of another one.
func (n *node) awaitOutside(t *testing.T, network *podnet.Namespace) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); n.inside(t, network); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the agent is still in the pod's network namespace")
		}
	}
}

// standIn speaks for a pod as imds-server does, or as a hostile pod may.
type standIn struct {
	listener *net.UnixListener
	conns    chan *net.UnixConn // that have been spoken to
	states   chan progress
}

// honest is what imds-server says.
const honest = `{"version":1,"bridgeName":"","preferredBridge":"","redirectPort":0,"namespace":"tenant","pod":"virt-launcher-vm","vm":"vm"}` + "\n"

// handOver has a pod hand over a network namespace as imds-server does.
func handOver(t *testing.T, volume string, network *podnet.Namespace) *standIn {
	t.Helper()
	return speak(t, volume, func(conn *net.UnixConn) error { return say(conn, honest, network.FD()) })
}

// say sends a message with descriptors.
func say(conn *net.UnixConn, message string, descriptors ...int) error {
	var rights []byte
	if len(descriptors) > 0 {
		rights = unix.UnixRights(descriptors...)
	}
	_, _, err := conn.WriteMsgUnix([]byte(message), rights, nil)
	return err
}

// speak makes the socket of a pod, and talks to each agent that connects.
func speak(t *testing.T, volume string, talk func(*net.UnixConn) error) *standIn {
	t.Helper()
	path := filepath.Join(volume, "imds.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new"})
	must(t, err)
	listener.SetUnlinkOnClose(false)
	must(t, os.Chmod(path+".new", 0o666))
	must(t, os.Rename(path+".new", path))
	s := &standIn{listener: listener, conns: make(chan *net.UnixConn, 1000), states: make(chan progress, 10000)}
	t.Cleanup(func() { s.close() })
	go func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			talk(conn) // the agent may have ended it
			s.conns <- conn
			go func() {
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					var said progress
					if err := json.Unmarshal(lines.Bytes(), &said); err != nil {
						said = progress{State: err.Error()}
					}
					s.states <- said
				}
				conn.Close()
			}()
		}
	}()
	return s
}

// close ends the server with its connections.
func (s *standIn) close() {
	s.listener.Close()
	for {
		select {
		case conn := <-s.conns:
			conn.Close()
		default:
			return
		}
	}
}

// await waits until the agent tells a state whose reason has a text in it.
func (s *standIn) await(t *testing.T, state, reason string) {
	t.Helper()
	var told []progress
	deadline := time.After(time.Minute)
	for {
		select {
		case said := <-s.states:
			if said.State == state && strings.Contains(said.Reason, reason) {
				return
			}
			told = append(told, said)
		case <-deadline:
			t.Fatalf("the agent did not tell %s, %q; it told %q", state, reason, told)
		}
	}
}

// waitForEach waits until the log has a line for each of the texts, in any order.
func (p logLines) waitForEach(t *testing.T, texts ...string) {
	t.Helper()
	for len(texts) > 0 {
		line := p.waitFor(t, "")
		texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(line, text) })
	}
}

// waitForAll waits for a line of the log that has all of the texts.
func (p logLines) waitForAll(t *testing.T, texts ...string) {
	t.Helper()
	for {
		line := p.waitFor(t, texts[0])
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			return
		}
	}
}

// The variables that have the test binary mount something before it is imds-init, and
// be its parent in the same mount namespace.
const (
	mountAt  = "TEST_MOUNT_AT"
	asParent = "TEST_AS_PARENT"
)

func mountBefore() {
	place := os.Getenv(mountAt)
	if place == "" {
		return
	}
	err := unix.Mount("none", place, "tmpfs", 0, "")
	if err == nil && os.Getenv(asParent) != "" {
		os.Unsetenv(mountAt)
		child := exec.Command("/proc/self/exe", os.Args[1:]...)
		child.Stderr = os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = child.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
