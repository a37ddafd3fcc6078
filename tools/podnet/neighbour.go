package podnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Outcome is what a neighbour's request for a token came to.
type Outcome string

const (
	// Answered: a TCP connection was made, which is one too many, whatever came
	// by it.
	Answered Outcome = "answered"
	// NoAnswer: nobody answered, neither the ARP request nor the TCP one.
	NoAnswer Outcome = "no answer"
	// Refused: something answered, with a TCP reset.
	Refused Outcome = "refused"
)

// Reply is what the neighbour has seen.
type Reply struct {
	Outcome Outcome
	// Status and Body of the HTTP answer, when there was one.
	Status int
	Body   string
	// Err is how it ended when there was no HTTP answer.
	Err error
}

func (r Reply) String() string {
	if r.Status != 0 {
		return fmt.Sprintf("%s: status %d, %d bytes", r.Outcome, r.Status, len(r.Body))
	}
	return fmt.Sprintf("%s: %v", r.Outcome, r.Err)
}

// NeighbourAsks has the neighbour try GET http://169.254.169.254/v1/token by
// way of the pod's uplink, until ctx ends. With a MAC it sends the packets
// there; without, it asks by ARP. The neighbour is left as it was. An error
// means that the attempt could not be made.
func (p *Pod) NeighbourAsks(ctx context.Context, mac net.HardwareAddr) (Reply, error) {
	return p.askIPv4(ctx, NeighbourInterface, mac, 80)
}

// NeighbourAsksAt is NeighbourAsks at another TCP port.
func (p *Pod) NeighbourAsksAt(ctx context.Context, mac net.HardwareAddr, port uint16) (Reply, error) {
	return p.askIPv4(ctx, NeighbourInterface, mac, port)
}

// NeighbourAsksBy is NeighbourAsks by way of another of the neighbour's links to
// the pod, such as [BystanderInterface].
func (p *Pod) NeighbourAsksBy(ctx context.Context, uplink string, mac net.HardwareAddr) (Reply, error) {
	return p.askIPv4(ctx, uplink, mac, 80)
}

func (p *Pod) askIPv4(ctx context.Context, uplink string, mac net.HardwareAddr, port uint16) (Reply, error) {
	p.attack.Lock()
	defer p.attack.Unlock()
	undo, err := p.routeToMetadata(uplink, mac)
	if err != nil {
		return Reply{}, errors.Join(err, undo())
	}
	return p.ask(ctx, netip.AddrPortFrom(MetadataAddr, port)), undo()
}

// NeighbourAsksIPv6 is NeighbourAsks for http://[fe80::a9fe:a9fe]/v1/token,
// which needs no route. Without a MAC it asks by neighbour solicitation.
func (p *Pod) NeighbourAsksIPv6(ctx context.Context, mac net.HardwareAddr) (Reply, error) {
	return p.NeighbourAsksIPv6By(ctx, NeighbourInterface, mac)
}

// NeighbourAsksIPv6By is NeighbourAsksIPv6 by way of another of the neighbour's
// links to the pod.
func (p *Pod) NeighbourAsksIPv6By(ctx context.Context, uplink string, mac net.HardwareAddr) (Reply, error) {
	p.attack.Lock()
	defer p.attack.Unlock()
	up, err := p.Neighbour.link(uplink)
	if err != nil {
		return Reply{}, err
	}
	to, err := p.Neighbour.MetadataOn(uplink)
	if err != nil {
		return Reply{}, err
	}
	entry := &netlink.Neigh{LinkIndex: up.Attrs().Index, IP: MetadataIPv6Addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	if mac != nil {
		if err := p.Neighbour.netlink.NeighSet(entry); err != nil {
			return Reply{}, fmt.Errorf("the neighbour's entry %s for %s: %w", mac, entry.IP, err)
		}
	}
	return p.ask(ctx, to), p.Neighbour.forget(entry)
}

// forget removes what is known or still asked for about a neighbour.
func (n *Namespace) forget(entry *netlink.Neigh) error {
	err := n.netlink.NeighDel(entry)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// routeToMetadata has the neighbour look for 169.254.169.254 on a link to the
// pod. undo is never nil.
func (p *Pod) routeToMetadata(uplink string, mac net.HardwareAddr) (undo func() error, err error) {
	undo = func() error { return nil }
	up, err := p.Neighbour.link(uplink)
	if err != nil {
		return undo, err
	}
	index := up.Attrs().Index
	to := &net.IPNet{IP: MetadataAddr.AsSlice(), Mask: net.CIDRMask(32, 32)}
	route := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: to}
	if err := p.Neighbour.netlink.RouteAdd(route); err != nil {
		return undo, fmt.Errorf("the neighbour's route to %s: %w", to, err)
	}
	undo = func() error { return p.Neighbour.netlink.RouteDel(route) }
	entry := &netlink.Neigh{LinkIndex: index, IP: to.IP, HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	if mac != nil {
		if err := p.Neighbour.netlink.NeighSet(entry); err != nil {
			return undo, fmt.Errorf("the neighbour's ARP entry %s for %s: %w", mac, to.IP, err)
		}
	}
	removeRoute := undo
	return func() error {
		// Also what ARP has learned or is still asking for goes, or it would
		// serve the next attempt.
		return errors.Join(p.Neighbour.forget(entry), removeRoute())
	}, nil
}

func (p *Pod) ask(ctx context.Context, at netip.AddrPort) Reply {
	conn, err := p.Neighbour.Dial(ctx, "tcp", at.String())
	if errors.Is(err, syscall.ECONNREFUSED) {
		return Reply{Outcome: Refused, Err: err}
	}
	if err != nil {
		return Reply{Outcome: NoAnswer, Err: err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	host := netip.AddrPortFrom(at.Addr().WithZone(""), at.Port()).String()
	request, err := http.NewRequest(http.MethodGet, "http://"+host+"/v1/token", nil)
	if err != nil {
		return Reply{Outcome: Answered, Err: err}
	}
	if err := request.Write(conn); err != nil {
		return Reply{Outcome: Answered, Err: err}
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return Reply{Outcome: Answered, Err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return Reply{Outcome: Answered, Status: response.StatusCode, Body: string(body), Err: err}
}
