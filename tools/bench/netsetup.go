package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func netsetupComparisons() []comparison {
	return []comparison{
		{
			name:    "init-memory",
			figures: []figure{{name: "imds-init in a wired pod, private", unit: "MB"}, {name: "imds-init in a wired pod, resident", unit: "MB"}},
			prepare: initMemory,
		}, {
			name:    "agent-memory",
			figures: []figure{{name: "the node agent without pods, private", unit: "MB"}, {name: "the node agent without pods, resident", unit: "MB"}},
			prepare: agentMemory,
		}, {
			name:    "joined",
			figures: []figure{{name: "tap to bridge, by imds-init", unit: "ms"}},
			prepare: joined,
		}, {
			name:    "first-answer",
			figures: []figure{{name: "tap to the guest's first answer", unit: "ms"}},
			prepare: firstAnswer,
		},
	}
}

// The names that imds-init gives to the pair of its endpoint.
const (
	endpoint = "veth-imds"
	port     = "veth-imds-br"
)

// pod makes a pod that virt-handler has not wired yet.
func (b *bench) pod() (*podnet.Pod, error) {
	pod, err := podnet.New(podnet.Options{})
	if err == nil {
		b.networks = append(b.networks, pod)
	}
	return pod, err
}

// startInit starts imds-init in a pod, and returns when the endpoint is there.
func (b *bench) startInit(pod *podnet.Namespace) (*process, error) {
	p, err := b.start(pod, nil, b.binaries.init)
	if err != nil {
		return nil, err
	}
	return p, p.await("ready", func() bool { return strings.Contains(p.log.String(), "endpoint ready") })
}

// idle waits until the processor time of a program no longer grows.
func (p *process) idle() error {
	var last time.Duration
	for {
		now, err := p.processorTime()
		if err != nil || now == last {
			return err
		}
		last = now
		time.Sleep(500 * time.Millisecond)
	}
}

// atRest measures the memory of a program that has nothing more to do.
func atRest(p *process) ([]float64, error) {
	defer p.stop()
	if err := p.idle(); err != nil {
		return nil, err
	}
	private, resident, err := p.memory()
	return []float64{private, resident}, err
}

// referenceAtRest is a minimal net/http program after its first answer.
func referenceAtRest(b *bench) measurement {
	return func() ([]float64, error) {
		p, _, err := startReference(b, []byte("OK"))
		if err != nil {
			return nil, err
		}
		return atRest(p)
	}
}

func initMemory(b *bench) (ours, reference measurement, err error) {
	return func() ([]float64, error) {
		pod, err := b.pod()
		if err != nil {
			return nil, err
		}
		p, err := b.startInit(pod.Pod)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(pod.Wire(), pod.StartGuest()); err != nil {
			return nil, err
		}
		if err := p.await("wired", func() bool { return strings.Contains(p.log.String(), "msg=wired") }); err != nil {
			return nil, err
		}
		return atRest(p)
	}, referenceAtRest(b), nil
}

func agentMemory(b *bench) (ours, reference measurement, err error) {
	return func() ([]float64, error) {
		p, err := b.start(nil, []string{"IMDS_PODS_DIR=" + b.work}, b.binaries.init, "agent")
		if err != nil {
			return nil, err
		}
		if err := p.await("started", func() bool { return strings.Contains(p.log.String(), "msg=starting") }); err != nil {
			return nil, err
		}
		return atRest(p)
	}, referenceAtRest(b), nil
}

// joined is how long it takes from the guest's tap to the endpoint on its bridge. The
// reference does nothing else than that: it hears of the tap and sets the bridge.
func joined(b *bench) (ours, reference measurement, err error) {
	if !podnet.RealTaps() {
		return nil, nil, errors.New("this user may not make taps")
	}
	measure := func(prepare func(*podnet.Namespace) error) measurement {
		return func() ([]float64, error) {
			pod, err := podnet.NewNamespace("pod")
			if err != nil {
				return nil, err
			}
			b.networks = append(b.networks, pod)
			defer b.cleanUp()
			if err := prepare(pod); err != nil {
				return nil, err
			}
			began, err := plug(pod)
			if err != nil {
				return nil, err
			}
			for {
				link, err := pod.Netlink().LinkByName(port)
				took := time.Since(began)
				if err == nil && link.Attrs().MasterIndex != 0 {
					return []float64{milliseconds(took)}, nil
				}
				if took > 20*time.Second {
					return nil, errors.New("the endpoint does not come to the bridge")
				}
				time.Sleep(50 * time.Microsecond)
			}
		}
	}
	return measure(func(pod *podnet.Namespace) error { _, err := b.startInit(pod); return err }),
		measure(func(pod *podnet.Namespace) error { return react(b, pod) }), nil
}

// plug makes what KubeVirt makes last: a bridge and then the guest's tap, and returns
// when that was.
func plug(pod *podnet.Namespace) (began time.Time, err error) {
	bridge := netlink.NewLinkAttrs()
	bridge.Name = "k6t-eth0"
	if err := pod.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
		return began, err
	}
	master, err := pod.Netlink().LinkByName(bridge.Name)
	if err != nil {
		return began, err
	}
	if err := pod.Netlink().LinkSetUp(master); err != nil {
		return began, err
	}
	tap := netlink.NewLinkAttrs()
	tap.Name, tap.MasterIndex = "tap0", master.Attrs().Index
	began = time.Now()
	return began, pod.Do(func() error { return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: tap, Mode: netlink.TUNTAP_MODE_TAP}) })
}

// react makes a pair of the endpoint's names, and sets the bridge of its port as soon as
// a tap has one.
func react(b *bench, pod *podnet.Namespace) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = endpoint
	if err := pod.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: port}); err != nil {
		return err
	}
	ours, err := pod.Netlink().LinkByName(port)
	if err != nil {
		return err
	}
	updates, done := make(chan netlink.LinkUpdate, 100), make(chan struct{})
	err = pod.Do(func() error { return netlink.LinkSubscribe(updates, done) })
	if err != nil {
		return err
	}
	b.later(func() { close(done) })
	go func() {
		for update := range updates {
			if master := update.Link.Attrs().MasterIndex; update.Link.Type() == "tuntap" && master != 0 {
				pod.Netlink().LinkSetMasterByIndex(ours, master)
				return
			}
		}
	}()
	return nil
}

// firstAnswer is how long it takes from bridge and tap to the guest's first answer, its
// start included. The reference needs no wiring: it is a server at the address of the
// bridge, which the guest asks.
func firstAnswer(b *bench) (ours, reference measurement, err error) {
	measure := func(prepare func(*podnet.Namespace) error, url string) measurement {
		return func() ([]float64, error) {
			pod, err := b.pod()
			if err != nil {
				return nil, err
			}
			defer b.cleanUp()
			if err := prepare(pod.Pod); err != nil {
				return nil, err
			}
			if err := pod.Wire(); err != nil {
				return nil, err
			}
			began := time.Now()
			if err := pod.StartGuest(); err != nil {
				return nil, err
			}
			took, err := awaitFirstAnswer(pod.Guest, began, url)
			return []float64{milliseconds(took)}, err
		}
	}
	sidecars := func(pod *podnet.Namespace) error {
		if _, err := b.startInit(pod); err != nil {
			return err
		}
		environment, err := serverEnvironment(b)
		if err != nil {
			return err
		}
		server, err := b.start(pod, environment, b.binaries.server)
		if err != nil {
			return err
		}
		return server.await("listening", func() bool {
			return strings.Contains(server.log.String(), "msg=listening address="+podnet.MetadataAddr.String())
		})
	}
	plain := func(pod *podnet.Namespace) error {
		file, err := b.file("answer", []byte("OK"))
		if err != nil {
			return err
		}
		p, err := b.start(pod, nil, b.binaries.reference, ":80", file)
		if err != nil {
			return err
		}
		return p.await("listening", func() bool {
			conn, err := pod.Dial(context.Background(), "tcp4", "127.0.0.1:80")
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	return measure(sidecars, fmt.Sprintf("http://%s/healthz", podnet.MetadataAddr)),
		measure(plain, fmt.Sprintf("http://%s/healthz", podnet.MasqueradeGateway)), nil
}

// awaitFirstAnswer has the guest ask anew every two milliseconds, without waiting for
// the attempts before: TCP would repeat a packet that came too soon a second later.
func awaitFirstAnswer(guest *podnet.Namespace, began time.Time, url string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answered := make(chan time.Duration, 1)
	http := guest.HTTPClient()
	attempt := func() {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if get(ctx, http, url) != nil {
			return
		}
		select {
		case answered <- time.Since(began):
		default: // another was faster
		}
	}
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	for {
		asking.Go(attempt)
		select {
		case took := <-answered:
			return took, nil
		case <-ctx.Done():
			return 0, errors.New("the guest gets no answer")
		case <-pace.C:
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
