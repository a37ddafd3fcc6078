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
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
	"github.com/example/kubevirt-imds/tools/podnet/seccomp"
)

// isInit in its environment makes the test binary imds-init, the only program of
// the image that these tests run.
const isInit = "TEST_IS_IMDS_INIT"

func TestMain(m *testing.M) {
	if os.Getenv(isInit) != "" {
		tellGoroutines()
		mountBefore()
		if len(os.Args) > 1 && os.Args[1] == "agent" {
			seccomp.BecomeFiltered()
		}
		main()
	}
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // where nft is, for an ordinary user too
	podnet.Main(tests{m})
}

// tests are those of the package, with the image that they share.
type tests struct{ *testing.M }

var image struct {
	folder string
	build  func() error
}

func (t tests) Run() int {
	var err error
	if image.folder, err = os.MkdirTemp("", "imds-init-image-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(image.folder)
	defer os.RemoveAll(image.folder + serverSuffix)
	image.build = sync.OnceValue(func() error {
		// Without cgo, as the program of an image FROM scratch must be.
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(image.folder, "imds-init"), ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
	return t.M.Run()
}

// The values of kernel: which one the process seems to run on.
const (
	onThisKernel     = "this kernel"
	withoutNetfilter = "a kernel without nf_tables"
)

// imdsInit is imds-init in a pod.
type imdsInit struct {
	*kubelet.Sidecar
	logLines
}

// logLines are the lines of a log.
type logLines struct{ lines chan string }

func newLogLines() logLines { return logLines{make(chan string, 10000)} }

// newInit makes imds-init in the pod's namespace, as the declared patch says. env
// is added to its environment.
func newInit(t *testing.T, pod *podnet.Pod, kernel string, env ...string) *imdsInit {
	t.Helper()
	must(t, image.build())
	p := &imdsInit{logLines: newLogLines()}
	launcher, err := kubelet.LauncherPod("imds", metav1.ObjectMeta{Name: "virt-launcher-vm", Namespace: "tenant"}, "vm", "../kustomize/sidecar")
	must(t, err)
	node := &kubelet.Node{
		Images: map[string]string{"imds": image.folder},
		Folder: t.TempDir(),
		Log:    func(*corev1.Pod, string) (io.WriteCloser, error) { return p.readLog(), nil },
	}
	sandbox, err := node.Sandbox(launcher, pod.Pod)
	must(t, err)
	p.Sidecar, err = sandbox.Sidecar("imds-init", append(env, isInit+"=true")...)
	must(t, err)
	p.WithoutNetfilter = kernel == withoutNetfilter
	return p
}

// readLog sends what is written to it to lines.
func (p logLines) readLog() io.WriteCloser {
	reader, writer := io.Pipe()
	go func() {
		defer close(p.lines)
		lines := bufio.NewScanner(reader)
		for lines.Scan() {
			p.lines <- lines.Text()
		}
		reader.CloseWithError(lines.Err())
	}()
	return writer
}

// start runs imds-init in the pod's namespace until the end of the test.
func start(t *testing.T, pod *podnet.Pod, kernel string, env ...string) *imdsInit {
	t.Helper()
	p := newInit(t, pod, kernel, env...)
	must(t, p.Start())
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of imds-init:\n%s", p.Log())
		}
	})
	return p
}

func (p *imdsInit) kill() { p.Kill() }

// waitFor returns the next line of the log that holds the text.
func (p logLines) waitFor(t *testing.T, text string) string {
	t.Helper()
	return p.waitForEither(t, text, text)
}

// waitForEither returns the next line of the log that holds one of two texts.
func (p logLines) waitForEither(t *testing.T, text, other string) string {
	t.Helper()
	var seen []string
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line, open := <-p.lines:
			if !open {
				t.Fatalf("imds-init ended before it said %q:\n%s", text, strings.Join(seen, "\n"))
			}
			if strings.Contains(line, text) || strings.Contains(line, other) {
				return line
			}
			seen = append(seen, line)
		case <-deadline:
			t.Fatalf("imds-init did not say %q:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

// said returns the lines that nobody has waited for.
func (p logLines) said() []string {
	var lines []string
	for {
		select {
		case line, open := <-p.lines:
			if !open {
				return lines
			}
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

// serve stands in for imds-server: listeners bound to the endpoint's device that answer
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
