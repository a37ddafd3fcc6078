package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hostileObjects are as large as a body may be, each of another kind.
func hostileObjects() map[string]string {
	const size = 3 << 20
	fill := func(before, unit, after string) string {
		return before + strings.Repeat(unit, (size-len(before)-len(after))/len(unit)) + strings.TrimSuffix(after, " ")
	}
	const owner = `"ownerReferences":[{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","controller":true,"uid":"1","name":"n"}]`
	launcher := `{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"imds.kubevirt.io/enabled":"true","verdict.imds.kubevirt.io/wiring":"bridge"},` + owner + `},"spec":{`
	var keys strings.Builder
	for i := 0; keys.Len() < size-1000; i++ {
		fmt.Fprintf(&keys, `"imds.kubevirt.io/%d":"",`, i)
	}
	return map[string]string{
		"wide":             fill(`{"spec":{"a":[`, `{"":0},`, `0]}}`),
		"deep":             `{"spec":` + strings.Repeat(`{"a":[`, 4000) + strings.Repeat(`]}`, 4000) + `}`,
		"deeper":           fill(`{"spec":`, `[`, ``),
		"many keys":        `{"metadata":{"annotations":{` + keys.String() + `"imds.kubevirt.io/enabled":"true"}}}`,
		"long string":      fill(launcher+`"containers":[{"name":"`, `\u003c`, `"}]}}`),
		"many containers":  fill(launcher+`"containers":[`, `{"name":"imds-init"},`, `{"name":"a"}]}}`),
		"many volumes":     fill(launcher+`"volumes":[`, `{"name":"v"},`, `{"name":"a"}]}}`),
		"security context": fill(launcher+`"securityContext":{"sysctls":[`, `{},`, `{}]}}}`),
		"exponent":         launcher + `"containers":[{"name":"compute","resources":{"requests":{"cpu":"1e500000000","memory":"1"},"limits":{"cpu":"2","memory":"1"}}}]}}`,
		"digits":           fill(launcher+`"containers":[{"name":"compute","resources":{"limits":{"memory":"1","cpu":"`, `9`, `"}}}]}}`),
		"reason":           fill(`{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"imds.kubevirt.io/enabled":"true","verdict.imds.kubevirt.io/wiring":"none","verdict.imds.kubevirt.io/reason":"`, `<`, `"},`+owner+`}}`),
		"owner":            fill(`{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"imds.kubevirt.io/enabled":"true","verdict.imds.kubevirt.io/wiring":"bridge"},"ownerReferences":[{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","controller":true,"uid":"1","name":"`, `<`, `"}]}}`),
		"value":            fill(`{"metadata":{"ownerReferences":[{"controller":true}],"annotations":{"imds.kubevirt.io/enabled":"true","imds.kubevirt.io/bridge-name":"`, `<`, `"}}}`),
		"many interfaces":  fill(`{"metadata":{"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"domain":{"devices":{"interfaces":[`, `{"passt":{}},`, `{}]}}}}`),
		"small and wide":   `{"spec":{"securityContext":{"a":[` + strings.Repeat(`{"":0},`, 30_000) + `0]}}}`,
	}
}

// attacker sends one hostile body after another from an address of its own, in one
// of several manners, until ctx ends.
func attacker(ctx context.Context, n int, url string, bodies [][]byte, sent *atomic.Int64) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n+1))}}
	config := &tls.Config{InsecureSkipVerify: true}
	client := &http.Client{
		Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: config, ForceAttemptHTTP2: n%2 == 0},
		Timeout:   20 * time.Second,
	}
	defer client.CloseIdleConnections()
	paths := []string{"/mutate-pod", "/mutate-virtualmachine", "/mutate-virtualmachineinstance"}
	for i := n; ctx.Err() == nil; i++ {
		body := bodies[i%len(bodies)]
		var reader io.Reader = bytes.NewReader(body)
		switch n % 8 {
		case 5: // without a length
			reader = io.MultiReader(reader)
		case 6: // slowly
			reader = &slow{ctx: ctx, data: body}
		case 7: // cut off
			reader = io.MultiReader(bytes.NewReader(body[:len(body)/2]), failing{})
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+paths[i%3], reader)
		if err != nil {
			panic(err)
		}
		request.Header.Set("Content-Type", "application/json")
		if n%8 == 6 || n%8 == 7 {
			request.ContentLength = int64(len(body))
		}
		if response, err := client.Do(request); err == nil {
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		sent.Add(1)
	}
}

// slow gives a byte each 50 ms.
type slow struct {
	ctx  context.Context
	data []byte
}

func (s *slow) Read(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(50 * time.Millisecond):
		p[0], s.data = s.data[0], s.data[1:]
		return 1, nil
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// startFlooded starts the webhook as a process with the memory limit of the manifests.
func startFlooded(t *testing.T) (w *webhook, process *os.Process, ended <-chan error) {
	t.Helper()
	w = &webhook{t: t, certFile: t.TempDir() + "/tls.crt", keyFile: t.TempDir() + "/tls.key", ca: x509.NewCertPool(), log: newLogBuffer()}
	w.renewCertificate(time.Hour)
	arguments := []string{os.Args[0], "--tls-cert", w.certFile, "--tls-key", w.keyFile, "--patches", declaredPatches, "--server-image", serverImage,
		"--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"}
	command := exec.Command(arguments[0], arguments[1:]...)
	if cgroup := os.Getenv("IMDS_FLOOD_CGROUP"); cgroup != "" {
		command = exec.Command("sh", append([]string{"-c", `echo $$ >"` + cgroup + `/cgroup.procs" && exec "$@"`, "sh"}, arguments...)...)
	}
	// What limitMemory makes of the limit in the manifests, in a container.
	command.Env = append(os.Environ(), "IMDS_WEBHOOK_MAIN=1", "GOMEMLIMIT=48MiB")
	command.Stderr = w.log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- command.Wait(); close(over) }()
	t.Cleanup(func() {
		command.Process.Kill()
		<-over
	})
	addresses := regexp.MustCompile(`webhook=(\S+) health=(\S+)`).FindStringSubmatch(w.log.wait(t, "msg=listening"))
	w.url, w.healthURL = "https://"+addresses[1], "http://"+addresses[2]
	return w, command.Process, over
}

// TestFloodOfStreams has neighbours hold as many streams as the webhook takes, with as much of their bodies as it takes
// without anybody who reads it, by more connections than it takes, from one address and from many.
func TestFloodOfStreams(t *testing.T) {
	for _, sources := range []int{1, 200} {
		t.Run(fmt.Sprintf("from %d", sources), func(t *testing.T) {
			w, flooded, ended := startFlooded(t)
			ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
			defer stop()
			var neighbours sync.WaitGroup
			var opened atomic.Int64
			for n := range 300 {
				neighbours.Go(func() {
					for ctx.Err() == nil {
						s, err := dialStranger(w, byte(1+n%sources))
						if err != nil {
							continue
						}
						opened.Add(1)
						s.SetDeadline(time.Now().Add(10 * time.Second))
						for body := make([]byte, maxFrame-400); err == nil && ctx.Err() == nil; {
							stream := s.request(http.MethodPost, "/mutate-pod", maxSmall-1)
							for range 4 {
								err = s.frame(dataFrame, 0, stream, body)
							}
						}
						s.NetConn().Close()
					}
				})
			}
			peak := int64(0)
			for ctx.Err() == nil {
				peak = max(peak, memoryOf(t, flooded.Pid))
				select {
				case err := <-ended:
					t.Fatalf("the webhook has ended: %v\n%.10000s", err, w.log)
				case <-time.After(20 * time.Millisecond):
				}
			}
			neighbours.Wait()
			t.Logf("%d connections, peak %d MiB", opened.Load(), peak>>20)
			if limit := int64(slack * 112 << 20); peak > limit {
				t.Errorf("%d MiB, want at most %d of the limit of 128", peak>>20, limit>>20)
			}
			// Once they are gone it serves as before.
			took, failed := honest(t, w, w.client())()
			mustBeServed(t, took, failed)
		})
	}
}

// TestFlood sends the worst bodies from 64 addresses, each kept busy, and honest
// requests beside them. The process stays small, answers each health probe, and
// each honest request. IMDS_FLOOD is for how long, and IMDS_FLOOD_CGROUP a memory
// cgroup to run it in.
func TestFlood(t *testing.T) {
	duration := 3 * time.Second
	if text := os.Getenv("IMDS_FLOOD"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	w, flooded, ended := startFlooded(t)
	var bodies [][]byte
	for _, object := range hostileObjects() {
		bodies = append(bodies, fmt.Appendf(nil, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE","namespace":"n",`+
			`"resource":{"resource":"pods"},"object":%s}}`, object))
		bodies = append(bodies, fmt.Appendf(nil, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"UPDATE","namespace":"n",`+
			`"resource":{"resource":"virtualmachines"},"object":%s,"oldObject":%s}}`, object, object))
	}
	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var attackers sync.WaitGroup
	var sent atomic.Int64
	for n := range 64 {
		attackers.Go(func() { attacker(ctx, n, w.url, bodies, &sent) })
	}

	honest, probes := []time.Duration{}, []time.Duration{}
	client := w.client()
	body := reviewOf(t, podRequest(fixture(t, "masquerade")))
	peak := int64(0)
	for ctx.Err() == nil {
		begin := time.Now()
		response, err := client.Post(w.url+"/mutate-pod", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Errorf("honest request: %v", err)
			break
		}
		answer, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !bytes.Contains(answer, []byte(`"patch":`)) {
			t.Errorf("honest request: %s %s %v", response.Status, answer, err)
		}
		honest = append(honest, time.Since(begin))
		begin = time.Now()
		if status, text := w.health("/healthz"); status != http.StatusOK {
			t.Errorf("health probe: %d %s", status, text)
		}
		probes = append(probes, time.Since(begin))
		peak = max(peak, memoryOf(t, flooded.Pid))
	}
	attackers.Wait()
	select {
	case err := <-ended:
		t.Fatalf("the webhook has ended: %v\n%.10000s", err, w.log)
	default:
	}
	if size := len(w.log.String()); size > 4<<20 {
		t.Errorf("%d bytes of log", size)
	}
	slices.Sort(honest)
	slices.Sort(probes)
	t.Logf("%d hostile requests; %d honest ones: p50 %s, p99 %s, slowest %s; slowest probe %s; peak %d MiB",
		sent.Load(), len(honest), honest[len(honest)/2], honest[len(honest)*99/100], honest[len(honest)-1], probes[len(probes)-1], peak>>20)
	if limit := int64(slack * 64 << 20); peak > limit {
		t.Errorf("%d MiB, want at most %d: half of the limit", peak>>20, limit>>20)
	}
}

// memoryOf is what a process has allocated (RssAnon of /proc/PID/status), in bytes:
// what its cgroup counts, but for a page cache that the kernel takes back.
func memoryOf(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kilobytes := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(status)
	n, err := strconv.ParseInt(string(kilobytes[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
