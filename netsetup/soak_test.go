package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// soakTime is how long TestSoak lasts without IMDS_SOAK.
const soakTime = 6 * time.Second

// usual is the private memory of a sidecar after some minutes, in KB.
const usual = 8 << 10

// soaked is a pod with both sidecars and a guest that asks all the time.
type soaked struct {
	pod       *podnet.Pod
	sidecars  *kubelet.Pod
	init      *imdsInit
	server    *kubelet.Sidecar
	serial    atomic.Int64 // of the token in the volume
	answered  atomic.Int64
	failed    atomic.Int64
	fault     atomic.Pointer[string] // the first one that no accident excuses
	wired     podState               // as it is to be again after each accident
	held      holdings               // of imds-init then
	rotations int
	accidents map[string]int
}

// TestSoak lives through rotations, killed sidecars and accidents while eight clients
// of the guest ask without a pause: each new token is in the first answer after it, none
// is torn or comes after a newer one, and in the second half of its time, without
// restarts, neither sidecar grows. IMDS_SOAK is how long, such as 20m.
func TestSoak(t *testing.T) {
	lasts := soakTime
	if text := os.Getenv("IMDS_SOAK"); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		must(t, err)
	}
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			t.Parallel()
			s := newSoaked(t, binding)
			ctx, stop := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for n := range 8 {
				clients.Go(func() { s.ask(ctx, n%2 == 0) })
			}
			s.live(t, lasts/2, true)
			before := s.private(t)
			s.live(t, lasts/2, false)
			after := s.private(t)
			stop()
			clients.Wait()
			if fault := s.fault.Load(); fault != nil {
				t.Error(*fault)
			}
			t.Logf("%s: %d answers, %d requests lost in accidents, %d rotations; without restarts from %v to %v; %v",
				lasts, s.answered.Load(), s.failed.Load(), s.rotations, before, after, s.accidents)
			for name, size := range after {
				if size > max(before[name], usual)*3/2 { // it may just have started
					t.Errorf("%s has grown from %d KB to %d", name, before[name], size)
				}
			}
			s.init.awaitHoldings(t, s.held)
			if lasts > time.Minute { // the server keeps connections of a guest that is gone for half of that
				s.awaitDescriptors(t)
			}
			must(t, s.sidecars.Check())
		})
	}
}

func newSoaked(t *testing.T, binding podnet.Binding) *soaked {
	t.Helper()
	must(t, image.build())
	folder, err := serverImage()
	must(t, err)
	s := &soaked{pod: newPod(t, podnet.Options{Binding: binding}), accidents: map[string]int{}}
	s.init = &imdsInit{logLines: newLogLines()}
	launcher, err := kubelet.LauncherPod("init", metav1.ObjectMeta{
		Name: "virt-launcher-vm", Namespace: "tenant", Annotations: map[string]string{"imds.kubevirt.io/vm-name": "vm"},
	}, "vm", "../kustomize/sidecar")
	must(t, err)
	for i := range launcher.Spec.InitContainers {
		if c := &launcher.Spec.InitContainers[i]; c.Name == "imds-server" {
			c.Image = "server"
		}
	}
	node := &kubelet.Node{
		Images: map[string]string{"init": image.folder, "server": folder},
		Folder: t.TempDir(),
		Token: func(*corev1.Pod, string, time.Duration) (string, error) {
			return soakToken(s.serial.Add(1)), nil
		},
		Log: func(_ *corev1.Pod, name string) (io.WriteCloser, error) {
			if name == "imds-init" {
				s.init.logLines = newLogLines() // those of the last run have ended with it
				return s.init.readLog(), nil
			}
			return nopCloser{io.Discard}, nil
		},
	}
	s.sidecars, err = node.Sandbox(launcher, s.pod.Pod)
	must(t, err)
	s.init.Sidecar, err = s.sidecars.Sidecar("imds-init", isInit+"=true")
	must(t, err)
	s.server, err = s.sidecars.Sidecar("imds-server")
	must(t, err)
	t.Cleanup(func() {
		s.sidecars.Stop()
		if t.Failed() {
			t.Logf("%s\n%s", s.init.Log(), s.server.Log())
		}
	})
	must(t, s.init.Start())
	must(t, s.server.Start())
	must(t, s.pod.Wire())
	must(t, s.pod.StartGuest())
	s.init.waitFor(t, "msg=wired")
	s.awaitToken(t, "the start")
	s.wired, s.held = snapshot(t, s.pod), s.init.holdings(t)
	return s
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

var soakSignature = strings.Repeat("signature", 40)

// soakToken is a token that imds-server takes, with its number.
func soakToken(serial int64) string {
	part := func(value any) string {
		text, _ := json.Marshal(value)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now()
	return part(map[string]any{"alg": "none"}) + "." +
		part(map[string]any{"aud": "soak", "serial": serial, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "padding": strings.Repeat("x", 900)}) + "." +
		soakSignature
}

// serialOf is the number of a token, 0 where it is not whole.
func serialOf(token string) (serial int64) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0
	}
	var claims struct{ Serial int64 }
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &claims) != nil || parts[2] != soakSignature {
		return 0
	}
	return claims.Serial
}

// token asks once.
func (s *soaked) token(client *http.Client) (serial int64, err error) {
	request, err := http.NewRequest(http.MethodGet, "http://169.254.169.254/v1/token", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", "application/jwt")
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", response.Status, body)
	}
	return serialOf(string(body)), err
}

// ask asks until ctx ends, by connections that are kept or by new ones.
func (s *soaked) ask(ctx context.Context, keep bool) {
	client := s.pod.Guest.HTTPClient()
	client.Timeout = 2 * time.Second
	client.Transport.(*http.Transport).DisableKeepAlives = !keep
	last := int64(0)
	for ctx.Err() == nil {
		switch serial, err := s.token(client); {
		case err != nil:
			s.failed.Add(1)
			continue
		case serial == 0:
			s.blame("a token that is torn")
		case serial < last:
			s.blame(fmt.Sprintf("token %d after token %d", serial, last))
		default:
			last = serial
		}
		s.answered.Add(1)
	}
}

func (s *soaked) blame(fault string) { s.fault.CompareAndSwap(nil, &fault) }

// awaitToken waits until the guest has the newest token.
func (s *soaked) awaitToken(t *testing.T, after string) {
	t.Helper()
	client := s.pod.Guest.HTTPClient()
	client.Timeout = time.Second
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		serial, err := s.token(client)
		if err == nil && serial == s.serial.Load() {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("after %s: token %d, not %d; %v", after, serial, s.serial.Load(), err)
		}
	}
}

// live does one thing after the other to the pod.
func (s *soaked) live(t *testing.T, lasts time.Duration, restarts bool) {
	order := rand.New(rand.NewPCG(2, 200))
	client := s.pod.Guest.HTTPClient()
	client.Timeout = 5 * time.Second
	for end := time.Now().Add(lasts); time.Now().Before(end) && t.Context().Err() == nil; {
		what := "a rotation"
		switch chance := order.IntN(10); {
		case chance < 6:
			must(t, s.sidecars.Refresh())
			s.rotations++
			if serial, err := s.token(client); err != nil || serial != s.serial.Load() {
				t.Fatalf("the first request after a rotation: token %d, not %d; %v", serial, s.serial.Load(), err)
			}
		case chance < 7 && restarts:
			which := []*kubelet.Sidecar{s.init.Sidecar, s.server}[order.IntN(2)]
			what = "the end of " + which.Name
			which.Kill()
			must(t, which.Start())
		default:
			accident := accidents[order.IntN(len(accidents))]
			what = accident.name
			accident.happen(t, s.pod)
			if accident.mend != nil {
				must(t, accident.mend(s.pod))
			}
		}
		if what != "a rotation" {
			s.accidents[what]++
			s.init.awaitState(t, s.pod, s.wired, what)
		}
		s.awaitToken(t, what)
		s.init.said()
	}
}

// private returns the private memory of both sidecars, in KB.
func (s *soaked) private(t *testing.T) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, c := range []*kubelet.Sidecar{s.init.Sidecar, s.server} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.PID()))
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if size, found := strings.CutPrefix(line, "Private_"); found {
				var name string
				var kilobytes int
				fmt.Sscan(size, &name, &kilobytes)
				all[c.Name] += kilobytes
			}
		}
	}
	return all
}

// awaitDescriptors waits until imds-server holds no more than two listeners need.
func (s *soaked) awaitDescriptors(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		held, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.server.PID()))
		must(t, err)
		if len(held) <= 12 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("imds-server holds %d descriptors after its clients have gone", len(held))
		}
	}
}
