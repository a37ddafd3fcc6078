package main

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// One process keeps the networks of several pods, each on a thread that is in the
// network namespace of its pod.
func TestOneProcessKeepsSeveralPods(t *testing.T) {
	var pods []*podnet.Pod
	var logs []*lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, options := range []podnet.Options{{Binding: podnet.Masquerade}, {Binding: podnet.Bridge}, {Binding: podnet.ManagedTap}} {
		pod, log := newPod(t, options), &lockedBuffer{written: make(chan struct{}, 1)}
		pods, logs = append(pods, pod), append(logs, log)
		running.Go(func() {
			pod.Pod.Do(func() error {
				keepWired(ctx, target{}, slog.New(slog.NewTextHandler(log, nil)))
				return nil
			})
		})
	}
	for i, pod := range pods {
		logs[i].wait(t, "endpoint ready")
		serve(t, pod)
		must(t, pod.Wire())
		must(t, pod.StartGuest())
		logs[i].wait(t, "msg=wired")
	}
	for i, pod := range pods {
		binding := []podnet.Binding{podnet.Masquerade, podnet.Bridge, podnet.ManagedTap}[i]
		mustServe(t, pod, guestAddress(binding))
		must(t, pod.Pod.Netlink().LinkSetNoMaster(link(t, pod, wiring.Port)))
		logs[i].wait(t, "msg=repaired")
		mustServe(t, pod, guestAddress(binding))
	}
}

// lockedBuffer is a log that can be waited for.
type lockedBuffer struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{}
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.written <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

func (b *lockedBuffer) wait(t *testing.T, part string) {
	t.Helper()
	for {
		b.mu.Lock()
		found := bytes.Contains(b.text.Bytes(), []byte(part))
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-b.written:
		case <-t.Context().Done():
			t.Fatalf("the log has no %q:\n%s", part, b.text.String())
		}
	}
}
