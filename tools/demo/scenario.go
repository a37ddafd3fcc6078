package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// pods are virt-launcher pods as KubeVirt 1.9 makes them, one per binding.
//
//go:embed pods
var pods embed.FS

// listedPorts are those of the VM in masquerade binding. With a list of ports
// the pod keeps what goes to others, which is the harder case: a neighbour's
// packets for 169.254.169.254 are then not the guest's but the pod's own.
var listedPorts = []uint16{22}

// liveLimit is more than the sidecars ever take to be up.
const liveLimit = 10 * time.Second

// scenario is one VM, from the admission of its pod to its end.
type scenario struct {
	*demo
	binding podnet.Binding
	seen    *podDocument

	// What end and close have to take away.
	network  *podnet.Pod
	sidecars *kubelet.Pod
}

func newScenario(d *demo, binding podnet.Binding) *scenario {
	s := &scenario{demo: d, binding: binding, seen: &podDocument{Binding: string(binding)}}
	d.document.Pods = append(d.document.Pods, s.seen)
	return s
}

// run goes through all steps. When one fails it shows what the sidecars said.
func (s *scenario) run(ctx context.Context) error {
	s.progress.title(fmt.Sprintf("\n%s binding", s.binding))
	if err := s.steps(ctx); err != nil {
		if s.sidecars != nil {
			s.progress.note(s.sidecars.LastWords())
		}
		return fmt.Errorf("%s binding: %w", s.binding, err)
	}
	return nil
}

func (s *scenario) steps(ctx context.Context) error {
	pod, err := s.admit(ctx)
	if err != nil {
		return err
	}
	if err := s.startSidecars(ctx, pod); err != nil {
		return err
	}
	wired, err := s.wire()
	if err != nil {
		return err
	}
	g := guest{s.network.Guest, s.api.tokens}
	if err := s.awaitFirstAnswer(ctx, g, wired); err != nil {
		return err
	}
	uplink, err := podnet.Capture(s.network.Neighbour, podnet.NeighbourInterface)
	if err != nil {
		return err
	}
	// What the neighbour can do is worth seeing in full.
	return errors.Join(
		s.showGuest(ctx, g),
		s.rotate(ctx, g),
		s.killSidecars(ctx, g),
		s.letNeighbourTry(ctx),
		s.letNeighbourClaim(ctx, g),
		s.inspectUplink(uplink),
		s.sidecars.Check(),
	)
}

// admit sends the pod through the webhook.
func (s *scenario) admit(ctx context.Context) (*admitted, error) {
	raw, err := pods.ReadFile("pods/" + string(s.binding) + ".json")
	if err != nil {
		return nil, err
	}
	var pod *admitted
	err = s.step(&s.seen.Steps, "admission", func() (string, error) {
		if raw, err = s.api.judge(ctx, s.binding, raw); err != nil {
			return "", err
		}
		if pod, err = s.api.create(ctx, raw); err != nil {
			return "", err
		}
		s.seen.Name, s.seen.Patch = pod.pod.Name, pod.changes
		return "pod " + pod.pod.Namespace + "/" + pod.pod.Name + ", as imds-webhook has patched it:", nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range pod.changes {
		s.progress.note(c.String())
	}
	return pod, nil
}

// startSidecars makes the pod's network as it is when its first containers
// start, and starts the sidecars: there is no bridge yet, and no tap.
func (s *scenario) startSidecars(ctx context.Context, pod *admitted) error {
	network := podnet.Options{Binding: s.binding}
	if s.binding == podnet.Masquerade {
		network.Ports = listedPorts
	}
	err := s.step(&s.seen.Steps, "sidecars", func() (detail string, err error) {
		if s.network, err = podnet.New(network); err != nil {
			return "", err
		}
		if s.sidecars, err = s.node.Start(pod.pod, s.network.Pod, pod.sidecars); err != nil {
			return "", err
		}
		s.seen.Sidecars, err = s.confinement()
		return "started as the kubelet does, before there is a bridge:", err
	})
	if err != nil {
		return err
	}
	for _, c := range s.seen.Sidecars {
		s.progress.note(c.String())
	}
	return s.step(&s.seen.Steps, "probe", func() (string, error) {
		limited, cancel := context.WithTimeout(ctx, liveLimit)
		defer cancel()
		live, err := s.sidecars.Live(limited)
		return "liveness of " + strings.Join(live, " and ") + ", by its exec probe", err
	})
}

// confinement reads from the kernel what each sidecar may do.
func (s *scenario) confinement() ([]sidecarDocument, error) {
	var all []sidecarDocument
	for _, c := range s.sidecars.Sidecars() {
		seen, err := c.Status()
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		all = append(all, sidecarDocument{
			Name:            c.Name,
			Command:         c.Command(),
			UID:             seen.UID,
			GID:             seen.GID,
			Groups:          seen.Groups,
			BoundingSet:     seen.Bounding.String(),
			Effective:       seen.Effective.String(),
			NoNewPrivileges: seen.NoNewPrivileges,
		})
	}
	return all, nil
}

// wire does what virt-handler does, and returns when it was done.
func (s *scenario) wire() (wired time.Time, err error) {
	err = s.step(&s.seen.Steps, "wiring", func() (string, error) {
		err := s.network.Wire()
		wired = time.Now()
		what := "bridge k6t-eth0 with tap0, as virt-handler leaves them"
		if !podnet.RealTaps() {
			what += "; a veth pair is tap0, since /dev/net/tun cannot be opened"
		}
		return what, err
	})
	return wired, err
}

// awaitFirstAnswer starts the guest and measures.
func (s *scenario) awaitFirstAnswer(ctx context.Context, g guest, wired time.Time) error {
	return s.step(&s.seen.Steps, "first answer", func() (string, error) {
		if err := s.network.StartGuest(); err != nil {
			return "", err
		}
		start, took, err := g.firstAnswer(ctx, wired)
		if err != nil {
			return "", err
		}
		s.seen.FirstAnswer = start
		return fmt.Sprintf("%s after bridge and tap were there, the guest's start included", shown(took)), nil
	})
}

// showGuest shows what the guest sees.
func (s *scenario) showGuest(ctx context.Context, g guest) error {
	err := s.step(&s.seen.Steps, "guest", func() (string, error) {
		return "by its unchanged default route:", s.ask(ctx, g)
	})
	if err != nil {
		return err
	}
	for _, path := range []string{"/healthz", "/v1/identity", "/v1/token"} {
		s.progress.note("guest$ curl -s " + metadataURL + path + "\n" + s.seen.answers[path])
	}
	s.progress.note(s.seen.Token.String())
	if !s.network.SpeaksIPv6() {
		return nil
	}
	return s.step(&s.seen.Steps, "IPv6", func() (string, error) {
		health, err := g.getIPv6(ctx, "/healthz")
		if err == nil && health != "OK" {
			err = fmt.Errorf("GET %s/healthz: %s", metadataIPv6URL, health)
		}
		return "guest$ curl -s " + metadataIPv6URL + "/healthz: " + health, err
	})
}

func (s *scenario) ask(ctx context.Context, g guest) (err error) {
	s.seen.answers = map[string]string{}
	if s.seen.Health, err = g.get(ctx, "/healthz"); err != nil {
		return err
	}
	if s.seen.Health != "OK" {
		return fmt.Errorf("GET /healthz: %s", s.seen.Health)
	}
	s.seen.answers["/healthz"] = s.seen.Health
	if s.seen.answers["/v1/identity"], s.seen.Identity, err = g.identity(ctx); err != nil {
		return err
	}
	s.seen.answers["/v1/token"], s.seen.Token, err = g.token(ctx)
	return err
}

// rotate has the kubelet swap the token, and the guest ask again.
func (s *scenario) rotate(ctx context.Context, g guest) error {
	return s.step(&s.seen.Steps, "rotation", func() (string, error) {
		if err := s.sidecars.Refresh(); err != nil {
			return "", err
		}
		_, token, err := g.token(ctx)
		if err != nil {
			return "", err
		}
		s.seen.Rotated = token
		if s.seen.Token != nil && token.Claims.ID == s.seen.Token.Claims.ID {
			return "", errors.New("the guest still gets the token from before")
		}
		return "the kubelet has swapped the token; the next answer holds the new one", nil
	})
}

// killSidecars has each sidecar die the hard way. The kubelet starts it again,
// and the guest notices nothing at its next request.
func (s *scenario) killSidecars(ctx context.Context, g guest) error {
	return s.step(&s.seen.Steps, "accident", func() (string, error) {
		for _, c := range s.sidecars.Sidecars() {
			c.Kill()
			if err := c.Start(); err != nil {
				return "", err
			}
			limited, cancel := context.WithTimeout(ctx, liveLimit)
			_, err := s.sidecars.Live(limited)
			cancel()
			if err != nil {
				return "", fmt.Errorf("after SIGKILL of %s: %w", c.Name, err)
			}
			if _, _, err := g.token(ctx); err != nil {
				return "", fmt.Errorf("after SIGKILL of %s: %w", c.Name, err)
			}
		}
		return "each sidecar killed by SIGKILL and started again: the next request is answered", nil
	})
}

// letNeighbourTry has a neighbour ask for the token.
func (s *scenario) letNeighbourTry(ctx context.Context) error {
	err := s.step(&s.seen.Steps, "neighbour", func() (string, error) {
		var err error
		if s.seen.Neighbour, err = tryAll(ctx, s.network, s.binding); err != nil {
			return "", err
		}
		detail := fmt.Sprintf("refused in each of %d ways to ask from the pod network:", len(s.seen.Neighbour))
		return detail, answered(s.seen.Neighbour)
	})
	for _, a := range s.seen.Neighbour {
		s.progress.note(a.String())
	}
	return err
}

// letNeighbourClaim has a neighbour claim the address for itself.
func (s *scenario) letNeighbourClaim(ctx context.Context, g guest) error {
	return s.step(&s.seen.Steps, "impostor", func() (string, error) {
		var err error
		if s.seen.Impostor, err = outdoImpostor(ctx, s.network, g); err != nil {
			return "", err
		}
		if n := s.seen.Impostor.Requests; n > 0 {
			return "", fmt.Errorf("the guest asked the impostor %d times", n)
		}
		return fmt.Sprintf("a neighbour claims the address itself: %d of %d answers are true",
			s.seen.Impostor.TrueAnswers, impostorRequests), nil
	})
}

// inspectUplink looks at what the pod has sent to the network since the first
// answer. What it received is the neighbour's doing.
func (s *scenario) inspectUplink(uplink *podnet.Recording) error {
	return s.step(&s.seen.Steps, "uplink", func() (string, error) {
		frames, err := uplink.Stop()
		if err != nil {
			return "", err
		}
		var ours []podnet.Frame
		for _, f := range frames {
			if !f.Outgoing && f.ConcernsMetadata() {
				ours = append(ours, f)
			}
		}
		n := len(ours)
		s.seen.UplinkFrames = &n
		if n > 0 {
			return "", fmt.Errorf("%d frames about 169.254.169.254 left the pod, the first: %s", n, ours[0])
		}
		return "no frame about 169.254.169.254 has left the pod", nil
	})
}

// end stops the sidecars. It may be called again.
func (s *scenario) end() error {
	if s.sidecars == nil {
		return nil
	}
	sidecars := s.sidecars
	s.sidecars = nil
	return s.step(&s.seen.Steps, "end", func() (string, error) {
		return "the sidecars have ended by SIGTERM", sidecars.Stop()
	})
}

// close removes the network, and with it the guest.
func (s *scenario) close() error {
	if s.network == nil {
		return nil
	}
	return s.network.Close()
}
