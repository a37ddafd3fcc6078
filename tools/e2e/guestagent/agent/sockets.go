package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
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
func send(ctx context.Context, s guestagent.Send, begun func()) (guestagent.Sent, error) {
	if len(s.Frames) == 0 {
		return guestagent.Sent{}, errors.New("no frames")
	}
	socket, err := openPackets(s.Interface, 0)
	if err != nil {
		return guestagent.Sent{}, err
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { socket.SetWriteDeadline(time.Now()) })()
	begun()
	var sent guestagent.Sent
	begin := time.Now()
	for round := 0; (s.Rounds == 0 || round < s.Rounds) && ctx.Err() == nil; round++ {
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

// sniff records frames until ctx ends, and all that have passed then.
func sniff(ctx context.Context, s guestagent.Sniff, begun func()) (guestagent.Sniffed, error) {
	r := recorder{etherType: s.EtherType, buffer: make([]byte, largestFrame)}
	// All of them: of an EtherType alone a packet socket sees no frame that leaves.
	socket, err := openPackets(s.Interface, unix.ETH_P_ALL)
	if err != nil {
		return guestagent.Sniffed{}, err
	}
	defer socket.Close()
	raw, err := socket.SyscallConn()
	if err != nil {
		return guestagent.Sniffed{}, err
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
	etherType uint16
	begin     time.Time
	buffer    []byte
	sniffed   guestagent.Sniffed
	err       error
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
	if len(frame) < 14 || binary.BigEndian.Uint16(frame[12:]) != r.etherType {
		return
	}
	link, ok := from.(*unix.SockaddrLinklayer)
	r.sniffed.Frames = append(r.sniffed.Frames, guestagent.Frame{
		At:       time.Since(r.begin),
		Outgoing: ok && link.Pkttype == unix.PACKET_OUTGOING,
		Data:     bytes.Clone(frame),
	})
}

const (
	dripPause = time.Second
	// openLimit is how long a connection may take to be made.
	openLimit = 10 * time.Second
	// openAtOnce is how many connections are being made at a time.
	openAtOnce = 100
)

// hold opens connections and keeps them until ctx ends.
func hold(ctx context.Context, h guestagent.Hold, begun func()) (guestagent.Held, error) {
	var mu sync.Mutex
	held := guestagent.Held{Failures: map[guestagent.Failure]int{}}
	opening := make(chan struct{}, openAtOnce)
	keep := func() {
		opening <- struct{}{}
		conn, err := (&net.Dialer{Timeout: openLimit}).DialContext(ctx, "tcp", h.Address)
		<-opening
		mu.Lock()
		if err != nil {
			if ctx.Err() == nil {
				held.Failures[classify(err)]++
			}
			mu.Unlock()
			return
		}
		held.Opened++
		mu.Unlock()
		if !linger(ctx, conn, h) {
			mu.Lock()
			held.Ended++
			mu.Unlock()
		}
	}
	begun()
	var all sync.WaitGroup
	for range h.Connections {
		all.Go(keep)
	}
	all.Wait()
	<-ctx.Done()
	return held, nil
}

// linger keeps a connection and drips into it. It returns true where the connection lasted until ctx ended.
func linger(ctx context.Context, conn net.Conn, h guestagent.Hold) bool {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var drip sync.WaitGroup
	defer drip.Wait()
	over := make(chan struct{})
	defer close(over)
	drip.Go(func() {
		pause := time.NewTicker(dripPause)
		defer pause.Stop()
		for i := range len(h.Drip) {
			if _, err := conn.Write([]byte{h.Drip[i]}); err != nil {
				return
			}
			select {
			case <-pause.C:
			case <-over:
				return
			}
		}
	})
	// What the other side says, such as an answer after its time limit, is not of interest; that it ends is.
	buffer := make([]byte, 4096)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return ctx.Err() != nil
		}
	}
}
