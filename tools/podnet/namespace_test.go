package podnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	Require(t)
	n, err := NewNamespace("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestDoEntersTheNamespaceAndNothingElseDoes(t *testing.T) {
	n := newNamespace(t)
	outside := inode(t, "/proc/thread-self/ns/net")
	err := n.Do(func() error {
		if got, want := inode(t, "/proc/thread-self/ns/net"), inode(t, n.Path()); got != want {
			t.Errorf("Do runs in namespace %d, want %d", got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(t, "/proc/thread-self/ns/net"); got != outside {
		t.Errorf("after Do the test runs in namespace %d, want %d", got, outside)
	}
}

func TestDoSurvivesAFunctionThatEndsItsGoroutine(t *testing.T) {
	n := newNamespace(t)
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("want an error")
	}
}

func TestDoOnTheMainThreadLeavesItWhereItIs(t *testing.T) {
	n := newNamespace(t)
	outside := inode(t, "/proc/thread-self/ns/net")
	// Enough at once for one of them to land on the main thread, which no
	// goroutine of this test holds.
	results := make(chan error)
	for range 100 {
		go func() { results <- n.Do(func() error { return nil }) }()
	}
	for range 100 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := inode(t, "/proc/self/ns/net"); got != outside {
		t.Errorf("the main thread is in namespace %d, want %d", got, outside)
	}
}

func TestDialBesideClose(t *testing.T) {
	n := newNamespace(t)
	refused := make(chan error)
	go func() {
		_, err := n.Dial(t.Context(), "tcp", "127.0.0.1:9")
		for errors.Is(err, syscall.ECONNREFUSED) {
			_, err = n.Dial(t.Context(), "tcp", "127.0.0.1:9")
		}
		refused <- err
	}()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-refused; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want it to say that the namespace is closed", err)
	}
}

func TestDialRefusesNames(t *testing.T) {
	n := newNamespace(t)
	if _, err := n.Dial(t.Context(), "tcp", "localhost:80"); err == nil || !strings.Contains(err.Error(), "use an IP address") {
		t.Errorf("got %v", err)
	}
}

func TestSysctlOfAnInterfaceWithADot(t *testing.T) {
	n := newNamespace(t)
	if err := n.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0.100"}}); err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl("net/ipv4/conf/eth0.100/arp_ignore", "1"); err != nil {
		t.Error(err)
	}
	if err := n.Sysctl("net.ipv4.conf.nothing.arp_ignore", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want it to say that the key does not exist", err)
	}
}

func TestStartedProcessIsBornInTheNamespace(t *testing.T) {
	n := newNamespace(t)
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), printNamespace+"=1")
	cmd.Stdout = &out
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), namespaceID(t, n); got != want {
		t.Errorf("the process is in %s, want %s", got, want)
	}
}

// namespaceID is what readlink shows of a namespace's file.
func namespaceID(t *testing.T, n *Namespace) string {
	t.Helper()
	id, err := os.Readlink(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestNamespaceOfAProcess(t *testing.T) {
	Require(t)
	n, err := NewNamespace("test")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	command := exec.Command("cat") // until its standard input ends
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(command); err != nil {
		t.Fatal(err)
	}
	defer command.Wait()
	defer input.Close()
	same, err := NamespaceOf(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	if inode(t, same.Path()) != inode(t, n.Path()) {
		t.Error("it is another one")
	}
	if _, err := same.Netlink().LinkByName("lo"); err != nil {
		t.Error(err)
	}
}

func TestNewNamespaceHasOnlyALoopbackInterface(t *testing.T) {
	links, err := newNamespace(t).Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Attrs().Name != "lo" {
		t.Errorf("interfaces %v, want lo", links)
	}
}

func TestConnectionIsMadeInsideAndUsedOutside(t *testing.T) {
	n := newNamespace(t)
	listener, err := n.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("the listener can be reached from outside")
	}
	conn, err := n.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// The starter ends, and its child with it: nobody writes to the pipe any more.
func TestStartedProcessEndsWithItsStarter(t *testing.T) {
	Require(t)
	starter := exec.Command("/proc/self/exe")
	starter.Env = append(os.Environ(), startAndEnd+"=1")
	output, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(output)
	if err != nil || string(said) != "started" {
		t.Errorf("the starter says %q, %v", said, err)
	}
	if err := starter.Wait(); err != nil {
		t.Error(err)
	}
}
