package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// The test binary plays imds-init when this variable is set, as a container
// with the sidecar's security context would start it.
const playInit = "TEST_PLAYS_IMDS_INIT"

// The values of playInit: which kernel the process seems to run on.
const (
	onThisKernel      = "this kernel"
	withoutNetfilter  = "a kernel without nf_tables"
	alreadyRestricted = "restricted"
)

func TestMain(m *testing.M) {
	switch kernel := os.Getenv(playInit); kernel {
	case "":
		podnet.Main(m)
	case alreadyRestricted:
		tellHoldings()
		main()
	default:
		fmt.Fprintln(os.Stderr, restrictAndExec(kernel))
		os.Exit(1)
	}
}

// restrictAndExec leaves CAP_NET_ADMIN alone in the bounding set and starts
// this program anew, so that it has no other capability in any set.
func restrictAndExec(kernel string) error {
	runtime.LockOSThread()
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if c == unix.CAP_NET_ADMIN {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if kernel == withoutNetfilter {
		if err := refuseNetfilterSockets(); err != nil {
			return err
		}
	}
	os.Setenv(playInit, alreadyRestricted)
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// imdsInit is a running imds-init.
type imdsInit struct {
	cmd   *exec.Cmd
	lines chan string // of its log
}

// start runs imds-init in the pod's namespace, with nothing but CAP_NET_ADMIN.
func start(t *testing.T, pod *podnet.Pod, kernel string, env ...string) *imdsInit {
	t.Helper()
	p := &imdsInit{cmd: exec.Command("/proc/self/exe"), lines: make(chan string, 10000)}
	p.cmd.Env = append(append(os.Environ(), playInit+"="+kernel), env...)
	log, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Pod.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			p.lines <- lines.Text()
		}
		close(p.lines)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *imdsInit) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// waitFor returns the next line of the log that holds the text.
func (p *imdsInit) waitFor(t *testing.T, text string) string {
	t.Helper()
	var seen []string
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line, open := <-p.lines:
			if !open {
				t.Fatalf("imds-init ended before it said %q:\n%s", text, strings.Join(seen, "\n"))
			}
			if strings.Contains(line, text) {
				return line
			}
			seen = append(seen, line)
		case <-deadline:
			t.Fatalf("imds-init did not say %q:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

// said returns the lines that nobody has waited for.
func (p *imdsInit) said() []string {
	var lines []string
	for {
		select {
		case line := <-p.lines:
			lines = append(lines, line)
		default:
			return lines
		}
	}
}

// newPod makes a pod and a stand-in for imds-server in it, once the endpoint
// is there.
func newPod(t *testing.T, options podnet.Options) *podnet.Pod {
	t.Helper()
	podnet.Require(t)
	pod, err := podnet.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	return pod
}

// serve plays imds-server: listeners bound to the endpoint's device that answer
// with the address they were asked from.
func serve(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	serveAt(t, pod, endpoint)
	if pod.SpeaksIPv6() {
		serveAt(t, pod, endpointIPv6)
	}
}

func serveAt(t *testing.T, pod *podnet.Pod, address string) {
	t.Helper()
	var listener net.Listener
	err := pod.Pod.Do(func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var bindErr error
			err := c.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), wiring.Device) })
			return errors.Join(err, bindErr)
		}}
		listener, err = config.Listen(context.Background(), "tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr).Addr().WithZone("")
		fmt.Fprintf(w, "endpoint saw %s", from)
	})}
	var done sync.WaitGroup
	done.Go(func() { server.Serve(listener) })
	t.Cleanup(func() { server.Close(); done.Wait() })
}

const (
	endpoint     = "169.254.169.254:80"
	endpointIPv6 = "[fe80::a9fe:a9fe]:80"
)

// ask has the guest ask for its token over IPv4, once, and returns the answer.
func ask(pod *podnet.Pod) (string, error) { return get(pod, "http://169.254.169.254") }

// askIPv6 has the guest ask by one of its NICs.
func askIPv6(pod *podnet.Pod, nic string) (string, error) {
	url, err := pod.Guest.MetadataURL(nic)
	if err != nil {
		return "", err
	}
	return get(pod, url)
}

func get(pod *podnet.Pod, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/token", nil)
	if err != nil {
		return "", err
	}
	answer, err := pod.Guest.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// mustServe fails unless the guest is answered by the endpoint, which sees it
// by its own address: over IPv4, where the guest has it, and over IPv6 by eth0,
// where the pod has it.
func mustServe(t *testing.T, pod *podnet.Pod, guest string) {
	t.Helper()
	if guest != "" {
		mustServeIPv4(t, pod, guest)
	}
	if pod.SpeaksIPv6() {
		mustServeIPv6(t, pod, "eth0")
	}
}

func mustServeIPv4(t *testing.T, pod *podnet.Pod, guest string) {
	t.Helper()
	answer, err := ask(pod)
	wantAnswer(t, guest, answer, err)
}

func mustServeIPv6(t *testing.T, pod *podnet.Pod, nic string) {
	t.Helper()
	guest, err := pod.Guest.LinkLocal(nic)
	must(t, err)
	answer, err := askIPv6(pod, nic)
	wantAnswer(t, guest.String(), answer, err)
}

func wantAnswer(t *testing.T, guest, answer string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("guest %s is not served: %v", guest, err)
	}
	if want := "endpoint saw " + guest; answer != want {
		t.Fatalf("guest was answered %q, want %q", answer, want)
	}
}

// requireIPv6 skips where the kernel has no IPv6, or fails if CI=true.
func requireIPv6(t *testing.T) {
	t.Helper()
	if podnet.HasIPv6() {
		return
	}
	const why = "this kernel has no IPv6: start it without ipv6.disable=1"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// guestAddress is the guest's own address in a binding.
func guestAddress(b podnet.Binding) string {
	if b == podnet.Masquerade || b == "" {
		return podnet.MasqueradeGuestAddr.String()
	}
	return podnet.PodAddr.String()
}

// guestOf is the IPv4 address of the guest in a pod, empty where it has none.
func guestOf(o podnet.Options) string {
	if o.GuestWithoutIPv4 {
		return ""
	}
	return guestAddress(o.Binding)
}

// servedPod is a pod whose guest is served: wired, with its guest running and
// a server behind the endpoint.
func servedPod(t *testing.T, options podnet.Options, env ...string) (*podnet.Pod, *imdsInit) {
	t.Helper()
	pod := newPod(t, options)
	p := start(t, pod, onThisKernel, env...)
	p.waitFor(t, "endpoint ready")
	serve(t, pod)
	must(t, pod.Wire())
	must(t, pod.StartGuest())
	p.waitFor(t, "msg=wired")
	mustServe(t, pod, guestOf(options))
	return pod, p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
