package main

import (
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
func send(ctx context.Context, s hand.Send) (hand.Sent, error) {
	if len(s.Frames) == 0 {
		return hand.Sent{}, errors.New("no frames")
	}
	socket, err := openPackets(s.Interface, 0)
	if err != nil {
		return hand.Sent{}, err
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { socket.SetWriteDeadline(time.Now()) })()
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

// sniff records frames until ctx ends.
func sniff(ctx context.Context, s hand.Sniff) (hand.Sniffed, error) {
	var mac string
	if s.MAC != "" {
		parsed, err := net.ParseMAC(s.MAC)
		if err != nil {
			return hand.Sniffed{}, err
		}
		mac = string(parsed)
	}
	limit := s.Limit
	if limit == 0 {
		limit = keptFrames
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

	var sniffed hand.Sniffed
	begin := time.Now()
	buffer := make([]byte, largestFrame)
	for {
		var n int
		var from unix.Sockaddr
		var received error
		waited := raw.Read(func(fd uintptr) bool {
			n, from, received = unix.Recvfrom(int(fd), buffer, 0)
			return received != unix.EAGAIN
		})
		if ctx.Err() != nil {
			return sniffed, nil
		}
		if err := errors.Join(waited, received); err != nil {
			return sniffed, err
		}
		frame := buffer[:n]
		if n < 14 || s.EtherType != 0 && binary.BigEndian.Uint16(frame[12:]) != s.EtherType ||
			mac != "" && string(frame[:6]) != mac && string(frame[6:12]) != mac {
			continue
		}
		if len(sniffed.Frames) == limit {
			sniffed.Missed++
			continue
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		sniffed.Frames = append(sniffed.Frames, hand.Frame{
			At:       time.Since(begin),
			Outgoing: ok && link.Pkttype == unix.PACKET_OUTGOING,
			Data:     append([]byte{}, frame...),
		})
	}
}
