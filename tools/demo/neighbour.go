package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// attempt is a neighbour's attempt to get the token.
type attempt struct {
	Way     string         `json:"way"`
	Outcome podnet.Outcome `json:"outcome"`
	Detail  string         `json:"detail"`
	Refused bool           `json:"refused"`
}

// askLimit is how long the neighbour tries each way. Where it succeeds, it
// does within a millisecond.
const askLimit = 300 * time.Millisecond

// way is how a neighbour can address the pod: by ARP, or straight to a MAC.
type way struct {
	name   string
	inside func(*podnet.Pod) *podnet.Namespace
	iface  string // "": by ARP
}

func inPod(p *podnet.Pod) *podnet.Namespace   { return p.Pod }
func inGuest(p *podnet.Pod) *podnet.Namespace { return p.Guest }

var ways = map[podnet.Binding][]way{
	podnet.Masquerade: slices.Concat(everyBinding, []way{{"the pod's MAC", inPod, "eth0"}}),
	podnet.Bridge:     slices.Concat(everyBinding, []way{{"the guest's MAC", inGuest, "eth0"}}),
}

var everyBinding = []way{
	{name: "ARP"},
	{"the veth's MAC", inPod, "veth-imds"},
	{"the bridge port's MAC", inPod, "veth-imds-br"},
	{"the bridge's MAC", inPod, "k6t-eth0"},
}

// tryAll has the neighbour try every way.
func tryAll(ctx context.Context, p *podnet.Pod, binding podnet.Binding) ([]attempt, error) {
	var all []attempt
	for _, w := range ways[binding] {
		var mac net.HardwareAddr
		if w.iface != "" {
			var err error
			if mac, err = w.inside(p).MAC(w.iface); err != nil {
				return nil, err
			}
		}
		limited, cancel := context.WithTimeout(ctx, askLimit)
		reply, err := p.NeighbourAsks(limited, mac)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("by %s: %w", w.name, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		all = append(all, attempt{w.name, reply.Outcome, detail(reply, mac), reply.Outcome != podnet.Answered})
	}
	return all, nil
}

func (a attempt) String() string {
	verdict := "REACHED"
	if a.Refused {
		verdict = "refused"
	}
	return fmt.Sprintf("%s  by %-22s %s", verdict, a.Way, a.Detail)
}

// answered returns an error that names the ways in which the neighbour has
// succeeded.
func answered(attempts []attempt) error {
	var ways []string
	for _, a := range attempts {
		if !a.Refused {
			ways = append(ways, "by "+a.Way)
		}
	}
	if ways == nil {
		return nil
	}
	return fmt.Errorf("the neighbour has reached the metadata service %s", strings.Join(ways, " and "))
}

func detail(r podnet.Reply, mac net.HardwareAddr) string {
	to := ""
	if mac != nil {
		to = mac.String() + ": "
	}
	switch {
	case r.Outcome == podnet.NoAnswer:
		return fmt.Sprintf("%sno answer within %s", to, askLimit)
	case r.Status != 0:
		return fmt.Sprintf("%sstatus %d", to, r.Status)
	default:
		return to + r.Err.Error()
	}
}

// The guest asks this often, at this pace, while the impostor is at work.
const (
	impostorRequests = 10
	impostorPace     = 25 * time.Millisecond
)

// outdoImpostor has the neighbour take the address for itself, and the guest
// ask for its token meanwhile.
func outdoImpostor(ctx context.Context, p *podnet.Pod, g guest) (*impostorDocument, error) {
	impostor, err := p.Impersonate(ctx)
	if err != nil {
		return nil, err
	}
	result := &impostorDocument{}
	var asked error
	for range impostorRequests {
		time.Sleep(impostorPace) // lets false ARP come in between
		if _, _, asked = g.token(ctx); asked != nil {
			break
		}
		result.TrueAnswers++
	}
	result.Requests = impostor.Requests()
	return result, errors.Join(asked, impostor.Stop())
}
