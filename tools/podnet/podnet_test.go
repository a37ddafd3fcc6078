package podnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// In the environment they make the test binary print its network namespace and
// end, or start a process in a new namespace and end.
const (
	printNamespace = "PODNET_TEST_PRINT_NAMESPACE"
	startAndEnd    = "PODNET_TEST_START_AND_END"
)

func TestMain(m *testing.M) {
	if os.Getenv(printNamespace) != "" {
		id, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			panic(err)
		}
		fmt.Print(id)
		return
	}
	if os.Getenv(startAndEnd) != "" {
		n, err := NewNamespace("test")
		if err != nil {
			panic(err)
		}
		child := exec.Command("sleep", "3600")
		child.Stdout = os.Stdout
		if err := n.Start(child); err != nil {
			panic(err)
		}
		fmt.Print("started")
		return
	}
	Main(m)
}

func newPod(t *testing.T, options Options) *Pod {
	t.Helper()
	Require(t)
	p, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// runningPod is wired and has a guest.
func runningPod(t *testing.T, options Options) *Pod {
	t.Helper()
	p := newPod(t, options)
	if err := p.Wire(); err != nil {
		t.Fatal(err)
	}
	if err := p.StartGuest(); err != nil {
		t.Fatal(err)
	}
	return p
}

// within is a deadline that is never met when all is well.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve answers every request with the address that the client comes from.
func serve(t *testing.T, n *Namespace, address string) {
	t.Helper()
	listener, err := n.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, host)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

func get(t *testing.T, n *Namespace, url string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(within(t, 10*time.Second), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := n.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func mustGet(t *testing.T, n *Namespace, url, want string) {
	t.Helper()
	got, err := get(t, n, url)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("GET %s: the server saw the client as %s, want %s", url, got, want)
	}
}

func bindings(t *testing.T, run func(*testing.T, Binding)) {
	for _, b := range []Binding{Masquerade, Bridge, ManagedTap} {
		t.Run(string(b), func(t *testing.T) { run(t, b) })
	}
}

func ports(t *testing.T, n *Namespace, bridge string) string {
	t.Helper()
	master, err := n.link(bridge)
	if err != nil {
		t.Fatal(err)
	}
	links, err := n.netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if l.Attrs().MasterIndex == master.Attrs().Index {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func addrs(t *testing.T, n *Namespace, name string) string {
	t.Helper()
	link, err := n.link(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := n.netlink.AddrList(link, syscall.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, a := range list {
		texts = append(texts, a.IPNet.String())
	}
	return strings.Join(texts, " ")
}

func sysctl(t *testing.T, n *Namespace, key string) string {
	t.Helper()
	var value []byte
	err := n.Do(func() (err error) {
		value, err = os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/")))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}
