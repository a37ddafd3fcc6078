package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// firstPort is the source port of the first connection of each source.
const firstPort = 1024

// Flags of a TCP header (RFC 9293 section 3.1).
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// opener begins connections from addresses that it answers ARP requests for.
type opener struct {
	socket  *os.File
	own, to net.HardwareAddr
	target  netip.AddrPort
	sources []netip.Addr

	mu       sync.Mutex
	answered map[netip.AddrPort]bool
	result   hand.HalfOpened
}

// halfOpen begins connections and keeps their addresses alive until ctx ends.
func halfOpen(ctx context.Context, h hand.HalfOpen, begun func()) (hand.HalfOpened, error) {
	o := &opener{answered: map[netip.AddrPort]bool{}}
	if err := o.open(h); err != nil {
		return hand.HalfOpened{}, err
	}
	defer o.socket.Close()
	begun()
	var work sync.WaitGroup
	work.Go(o.listen)
	err := o.send(ctx, h)
	if err == nil {
		<-ctx.Done()
	}
	o.socket.SetReadDeadline(time.Now())
	work.Wait()
	o.result.Answered = len(o.answered)
	return o.result, err
}

func (o *opener) open(h hand.HalfOpen) (err error) {
	if h.Ports < 1 || h.Ports > 1<<16-firstPort {
		return errors.New("the number of ports is not between 1 and 64512")
	}
	if o.target, err = netip.ParseAddrPort(h.Target); err != nil {
		return err
	}
	if o.to, err = net.ParseMAC(h.MAC); err != nil {
		return err
	}
	for _, source := range h.Sources {
		addr, err := netip.ParseAddr(source)
		if err != nil {
			return err
		}
		o.sources = append(o.sources, addr)
	}
	if !o.target.Addr().Is4() || !slices.ContainsFunc(o.sources, netip.Addr.Is4) {
		return errors.New("the target and the sources are not IPv4 addresses")
	}
	nic, err := net.InterfaceByName(h.Interface)
	if err != nil {
		return err
	}
	o.own = nic.HardwareAddr
	o.socket, err = openPackets(h.Interface, unix.ETH_P_ALL)
	return err
}

// send sends the first frame of each connection.
func (o *opener) send(ctx context.Context, h hand.HalfOpen) error {
	for port := range h.Ports {
		for _, source := range o.sources {
			if ctx.Err() != nil {
				return nil
			}
			from := netip.AddrPortFrom(source, uint16(firstPort+port))
			_, err := o.socket.Write(o.ethernet(o.to, unix.ETH_P_IP, synPacket(from, o.target)))
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
			o.mu.Lock()
			o.result.Sent++
			o.mu.Unlock()
			if h.Pause > 0 {
				select {
				case <-time.After(h.Pause):
				case <-ctx.Done():
				}
			}
		}
	}
	return nil
}

// listen answers ARP requests and counts TCP answers, until its socket has a deadline.
func (o *opener) listen() {
	frame := make([]byte, largestFrame)
	for {
		n, err := o.socket.Read(frame)
		if errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return
		}
		if n < 14+28 {
			continue
		}
		payload := frame[14:n]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case unix.ETH_P_ARP:
			o.answerARP(payload)
		case unix.ETH_P_IP:
			o.count(payload)
		}
	}
}

// answerARP answers a request for one of the sources: operation 1, its sender at 8, its target at 24 (RFC 826).
func (o *opener) answerARP(request []byte) {
	wanted := netip.AddrFrom4([4]byte(request[24:28]))
	if binary.BigEndian.Uint16(request[6:]) != 1 || !slices.Contains(o.sources, wanted) {
		return
	}
	reply := slices.Concat(request[:6], []byte{0, 2}, o.own, request[24:28], request[8:18])
	o.socket.Write(o.ethernet(net.HardwareAddr(request[8:14]), unix.ETH_P_ARP, reply))
}

// count looks at a packet that may be an answer.
func (o *opener) count(packet []byte) {
	header := int(packet[0]&0x0f) * 4
	if packet[9] != unix.IPPROTO_TCP || len(packet) < header+20 || netip.AddrFrom4([4]byte(packet[12:16])) != o.target.Addr() {
		return
	}
	segment := packet[header:]
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:20])), binary.BigEndian.Uint16(segment[2:]))
	if binary.BigEndian.Uint16(segment) != o.target.Port() || !slices.Contains(o.sources, to.Addr()) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch flags := segment[13]; {
	case flags&flagRST != 0:
		o.result.Refused++
	case flags&(flagSYN|flagACK) == flagSYN|flagACK:
		o.answered[to] = true
	}
}

func (o *opener) ethernet(to net.HardwareAddr, etherType uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(to, o.own), etherType), payload...)
}

// synPacket is an IPv4 packet with the first segment of a TCP connection.
func synPacket(from, to netip.AddrPort) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = append(segment, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flagSYN, 0xff, 0xff, 0, 0, 0, 0)
	source, destination := from.Addr().As4(), to.Addr().As4()
	pseudo := slices.Concat(source[:], destination[:], []byte{0, unix.IPPROTO_TCP, 0, byte(len(segment))}, segment)
	binary.BigEndian.PutUint16(segment[16:], checksum(pseudo))

	packet := slices.Concat([]byte{4<<4 | 5, 0, 0, byte(20 + len(segment)), 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}, source[:], destination[:])
	binary.BigEndian.PutUint16(packet[10:], checksum(packet))
	return append(packet, segment...)
}

// checksum is the Internet's (RFC 1071), of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
