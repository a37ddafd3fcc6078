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

	"github.com/example/kubevirt-imds/tools/podnet/packet"
)

// ImpostorBody is what the impostor answers to every HTTP request.
const ImpostorBody = "impostor"

// impostorPace is the time between two rounds of false ARP: a hundred frames a
// second or so, faster than any ARP entry expires.
const impostorPace = 20 * time.Millisecond

// Impostor is a neighbour that claims to be the metadata service.
type Impostor struct {
	requests atomic.Int64
	stop     context.CancelFunc
	stopped  chan struct{}
	err      error // valid when stopped is closed
}

// Impersonate has the neighbour take 169.254.169.254 and fe80::a9fe:a9fe for
// itself: the addresses on up0, so that its kernel answers for them, HTTP servers
// that answer [ImpostorBody], and false ARP requests and replies and neighbour
// advertisements toward the pod, to everybody and to the guest's MAC. It goes on
// until ctx ends or Stop is called.
func (p *Pod) Impersonate(ctx context.Context) (*Impostor, error) {
	p.attack.Lock()
	undo, err := p.takeMetadataAddress()
	if err != nil {
		p.attack.Unlock()
		return nil, err
	}
	listeners, socket, frames, err := p.impostorMeans(ctx)
	if err != nil {
		defer p.attack.Unlock()
		return nil, errors.Join(err, undo())
	}
	ctx, cancel := context.WithCancel(ctx)
	i := &Impostor{stop: cancel, stopped: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(i.answer)}
	var work sync.WaitGroup
	for _, listener := range listeners {
		work.Go(func() { server.Serve(listener) }) // ends with server.Close
	}
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
	undo = func() error { return nil }
	for _, addr := range metadataAddrs() {
		if err := p.Neighbour.assign(up, netip.PrefixFrom(addr, addr.BitLen())); err != nil {
			return nil, errors.Join(err, undo())
		}
		before := undo
		undo = func() error {
			return errors.Join(p.Neighbour.netlink.AddrDel(up, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}), before())
		}
	}
	return undo, nil
}

// metadataAddrs are the addresses of the service that this kernel knows.
func metadataAddrs() []netip.Addr {
	if !HasIPv6() {
		return []netip.Addr{MetadataAddr}
	}
	return []netip.Addr{MetadataAddr, MetadataIPv6Addr}
}

// impostorMeans makes the listeners, a packet socket bound to up0, and the
// frames to send by it.
func (p *Pod) impostorMeans(ctx context.Context) (listeners []net.Listener, socket int, frames [][]byte, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	up, err := p.Neighbour.link(NeighbourInterface)
	if err != nil {
		return nil, 0, nil, err
	}
	own := up.Attrs().HardwareAddr
	for _, addr := range metadataAddrs() {
		if addr.Is6() {
			addr = addr.WithZone(fmt.Sprint(up.Attrs().Index))
		}
		listener, err := p.Neighbour.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 80).String())
		if err != nil {
			return listeners, 0, nil, err
		}
		listeners = append(listeners, listener)
	}
	// Protocol 0: it only sends.
	if socket, err = p.Neighbour.packetSocket(up.Attrs().Index, 0); err != nil {
		return listeners, 0, nil, err
	}
	frames = [][]byte{
		packet.Gratuitous(packet.ARPRequest, packet.Party{MAC: own, Addr: MetadataAddr}, packet.Broadcast),
		packet.Gratuitous(packet.ARPReply, packet.Party{MAC: own, Addr: MetadataAddr}, packet.Broadcast),
		packet.Gratuitous(packet.ARPReply, packet.Party{MAC: own, Addr: MetadataAddr}, p.primary.guestMAC),
	}
	for _, to := range []net.HardwareAddr{allNodesMAC, p.primary.guestMAC} {
		frames = append(frames, falseAdvertisement(own, to))
	}
	return listeners, socket, frames, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		listener.Close()
	}
}

// The group of all IPv6 nodes of a link (RFC 4291 section 2.7.1), and its MAC
// (RFC 2464 section 7).
var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// falseAdvertisement makes an unsolicited neighbour advertisement in which from
// claims fe80::a9fe:a9fe.
func falseAdvertisement(from, to net.HardwareAddr) []byte {
	return packet.NeighbourMessage(packet.Advertisement, from, to, MetadataIPv6Addr, allNodes, MetadataIPv6Addr, from)
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
