package netns

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestNewNamespaceHasOnlyALoopbackInterface(t *testing.T) {
	namespace := newNamespace(t)
	var names []string
	err := namespace.Do(func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			names = append(names, link.Attrs().Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(names, " ") != "lo" {
		t.Errorf("interfaces %q, want lo", names)
	}
}

func TestConnectionIsMadeInsideAndUsedOutside(t *testing.T) {
	namespace := newNamespace(t)
	var listener net.Listener
	err := namespace.Do(func() error {
		loopback, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(loopback); err != nil {
			return err
		}
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, "hello")
		conn.Close()
	}()

	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("the listener can be reached from outside")
	}
	conn, err := namespace.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCommandIsInTheNamespaceOfItsProcess(t *testing.T) {
	made := newNamespace(t)
	sleeper := exec.Command("sleep", "60")
	if err := made.Do(sleeper.Start); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Wait()
	defer sleeper.Process.Kill()
	found, err := Of(sleeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if in, out := commandsNamespace(t, found), commandsNamespace(t, made); in != out {
		t.Errorf("namespaces %s and %s, want the same", in, out)
	}
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || own == commandsNamespace(t, found) {
		t.Errorf("the command is in the test's own namespace %s (%v)", own, err)
	}
}

func commandsNamespace(t *testing.T, n *Namespace) string {
	var output strings.Builder
	command := exec.Command("readlink", "/proc/self/ns/net")
	command.Stdout = &output
	if err := n.Run(command); err != nil {
		t.Fatal(err)
	}
	return output.String()
}

func newNamespace(t *testing.T) *Namespace {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root: run this test as root")
		}
		t.Skip("network namespaces need root: run this test as root")
	}
	namespace, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	return namespace
}
