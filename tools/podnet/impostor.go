package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ImpostorBody is what the impostor answers to every HTTP request.
const ImpostorBody = "impostor"

// impostorPace is the time between two rounds of false ARP: a hundred frames a
// second or so, faster than any ARP entry expires.
const impostorPace = 20 * time.Millisecond

// Impostor is a neighbour that plays metadata service.
type Impostor struct {
	requests atomic.Int64
	stop     context.CancelFunc
	stopped  chan struct{}
	err      error // valid when stopped is closed
}

// Impersonate has the neighbour take 169.254.169.254 for itself: the address on
// up0, so that its kernel answers ARP for it, an HTTP server that answers
// [ImpostorBody], and false ARP requests and replies toward the pod, to
// everybody and to the guest's MAC. It goes on until ctx ends or Stop is
// called.
func (p *Pod) Impersonate(ctx context.Context) (*Impostor, error) {
	p.attack.Lock()
	undo, err := p.takeMetadataAddress()
	if err != nil {
		p.attack.Unlock()
		return nil, err
	}
	listener, socket, frames, err := p.impostorMeans(ctx)
	if err != nil {
		defer p.attack.Unlock()
		return nil, errors.Join(err, undo())
	}
	ctx, cancel := context.WithCancel(ctx)
	i := &Impostor{stop: cancel, stopped: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(i.answer)}
	var work sync.WaitGroup
	work.Go(func() { server.Serve(listener) }) // ends with server.Close
	work.Go(func() { sendUntil(ctx, socket, frames) })
	go func() {
		defer close(i.stopped)
		defer p.attack.Unlock()
		<-ctx.Done()
		closed := server.Close()
		work.Wait()
		i.err = errors.Join(closed, unix.Close(socket), undo())
	}()
	return i, nil
}

// Requests is how many HTTP requests have come to the impostor.
func (i *Impostor) Requests() int { return int(i.requests.Load()) }

// Stop ends the impostor, and returns when the neighbour is as it was.
func (i *Impostor) Stop() error {
	i.stop()
	<-i.stopped
	return i.err
}

func (i *Impostor) answer(w http.ResponseWriter, _ *http.Request) {
	i.requests.Add(1)
	io.WriteString(w, ImpostorBody)
}

func (p *Pod) takeMetadataAddress() (undo func() error, err error) {
	up, err := p.Neighbour.link(NeighbourInterface)
	if err != nil {
		return nil, err
	}
	if err := p.Neighbour.assign(up, netip.PrefixFrom(MetadataAddr, 32)); err != nil {
		return nil, err
	}
	return func() error {
		return p.Neighbour.netlink.AddrDel(up, &netlink.Addr{IPNet: netlink.NewIPNet(MetadataAddr.AsSlice())})
	}, nil
}

// impostorMeans makes the listener, a packet socket bound to up0, and the
// frames to send by it.
func (p *Pod) impostorMeans(ctx context.Context) (net.Listener, int, [][]byte, error) {
	up, err := p.Neighbour.link(NeighbourInterface)
	if err != nil {
		return nil, 0, nil, err
	}
	listener, err := p.Neighbour.Listen(ctx, "tcp", net.JoinHostPort(MetadataAddr.String(), "80"))
	if err != nil {
		return nil, 0, nil, err
	}
	// Protocol 0: it only sends.
	socket, err := p.Neighbour.packetSocket(up.Attrs().Index, 0)
	if err != nil {
		listener.Close()
		return nil, 0, nil, err
	}
	own, everybody := up.Attrs().HardwareAddr, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return listener, socket, [][]byte{
		falseARP(arpRequest, own, everybody),
		falseARP(arpReply, own, everybody),
		falseARP(arpReply, own, p.primary.guestMAC),
	}, nil
}

func sendUntil(ctx context.Context, socket int, frames [][]byte) {
	ticker := time.NewTicker(impostorPace)
	defer ticker.Stop()
	for {
		for _, frame := range frames {
			unix.Write(socket, frame) // a frame that the link does not take is lost
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// The operations of RFC 826.
const (
	arpRequest = 1
	arpReply   = 2
)

// falseARP makes a gratuitous ARP frame in which from claims 169.254.169.254.
func falseARP(operation uint16, from, to net.HardwareAddr) []byte {
	frame := append([]byte{}, to...)
	frame = append(frame, from...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_ARP)
	frame = binary.BigEndian.AppendUint16(frame, 1) // Ethernet
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, 6, 4) // lengths of the two kinds of address
	frame = binary.BigEndian.AppendUint16(frame, operation)
	frame = append(frame, from...)
	frame = append(frame, MetadataAddr.AsSlice()...)
	frame = append(frame, to...)
	return append(frame, MetadataAddr.AsSlice()...)
}

// packetSocket opens a packet socket on an interface, for the frames of a
// protocol (an ETH_P_* constant).
func (n *Namespace) packetSocket(index int, protocol uint16) (int, error) {
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var inNetworkOrder [2]byte
		binary.BigEndian.PutUint16(inNetworkOrder[:], protocol)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(inNetworkOrder[:]), Ifindex: index})
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("packet socket in %s: %w", n.name, err)
	}
	return fd, nil
}
