package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// largestFrame holds any frame of a NIC with the largest MTU, in bytes.
const largestFrame = 1 << 16

// openPackets opens a packet socket on a NIC for an EtherType; 0: it only sends.
func openPackets(name string, etherType uint16) (*os.File, error) {
	nic, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), name)
	var networkOrder [2]byte
	binary.BigEndian.PutUint16(networkOrder[:], etherType)
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(networkOrder[:]), Ifindex: nic.Index})
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return socket, nil
}

// send gives frames to a NIC. One for which it has no room now waits.
func send(ctx context.Context, s hand.Send, begun func()) (hand.Sent, error) {
	if len(s.Frames) == 0 {
		return hand.Sent{}, errors.New("no frames")
	}
	socket, err := openPackets(s.Interface, 0)
	if err != nil {
		return hand.Sent{}, err
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { socket.SetWriteDeadline(time.Now()) })()
	begun()
	var sent hand.Sent
	begin := time.Now()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for round := 0; (s.Rounds == 0 || round < s.Rounds) && ctx.Err() == nil; round++ {
		if s.Pause > 0 {
			select {
			case <-pause.C:
				pause.Reset(s.Pause)
			case <-ctx.Done():
			}
		}
		for _, frame := range s.Frames {
			_, err := socket.Write(frame)
			switch {
			case err == nil:
				sent.Frames++
			case errors.Is(err, unix.ENOBUFS): // the NIC's queue is full: this one is lost, as on any wire
			case ctx.Err() != nil:
			default:
				return sent, err
			}
		}
	}
	sent.Took = time.Since(begin)
	return sent, nil
}

// keptFrames is how many frames a recording keeps that says nothing else.
const keptFrames = 10000

// sniff records frames until ctx ends, and all that have passed then.
func sniff(ctx context.Context, s hand.Sniff, begun func()) (hand.Sniffed, error) {
	r := recorder{sniff: s, buffer: make([]byte, largestFrame)}
	if s.MAC != "" {
		var err error
		if r.mac, err = net.ParseMAC(s.MAC); err != nil {
			return hand.Sniffed{}, err
		}
	}
	if s.Limit == 0 {
		r.sniff.Limit = keptFrames
	}
	// All of them: of an EtherType alone a packet socket sees no frame that leaves.
	socket, err := openPackets(s.Interface, unix.ETH_P_ALL)
	if err != nil {
		return hand.Sniffed{}, err
	}
	defer socket.Close()
	raw, err := socket.SyscallConn()
	if err != nil {
		return hand.Sniffed{}, err
	}
	defer context.AfterFunc(ctx, func() { socket.SetReadDeadline(time.Now()) })()
	r.begin = time.Now()
	begun()
	for ctx.Err() == nil && r.err == nil {
		raw.Read(func(fd uintptr) bool { return r.receive(int(fd)) })
	}
	if r.err == nil {
		raw.Control(func(fd uintptr) { r.receive(int(fd)) })
	}
	return r.sniffed, r.err
}

// recorder keeps the frames of a NIC that are asked for.
type recorder struct {
	sniff   hand.Sniff
	mac     net.HardwareAddr
	begin   time.Time
	buffer  []byte
	sniffed hand.Sniffed
	err     error
}

// receive takes all frames that wait. It returns true where waiting for more makes no sense.
func (r *recorder) receive(fd int) bool {
	for {
		n, from, err := unix.Recvfrom(fd, r.buffer, 0)
		switch err {
		case nil:
			r.keep(r.buffer[:n], from)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		case unix.ENETDOWN: // said once when the NIC goes down
		default:
			r.err = err
			return true
		}
	}
}

func (r *recorder) keep(frame []byte, from unix.Sockaddr) {
	if len(frame) < 14 || r.sniff.EtherType != 0 && binary.BigEndian.Uint16(frame[12:]) != r.sniff.EtherType ||
		r.mac != nil && !bytes.Equal(frame[:6], r.mac) && !bytes.Equal(frame[6:12], r.mac) {
		return
	}
	if len(r.sniffed.Frames) == r.sniff.Limit {
		r.sniffed.Missed++
		return
	}
	link, ok := from.(*unix.SockaddrLinklayer)
	r.sniffed.Frames = append(r.sniffed.Frames, hand.Frame{
		At:       time.Since(r.begin),
		Outgoing: ok && link.Pkttype == unix.PACKET_OUTGOING,
		Data:     bytes.Clone(frame),
	})
}
