package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// captureBuffer is asked of the kernel for frames that wait to be read, in
// bytes.
const captureBuffer = 4 << 20

// Recording collects the frames that pass an interface.
type Recording struct {
	file   *os.File
	socket syscall.RawConn
	reader sync.WaitGroup
	buffer []byte // the reader's

	mu      sync.Mutex
	frames  []Frame
	arrived chan struct{} // closed, and made anew, at each frame
	err     error
}

// Capture starts to record what passes an interface, both ways. Every frame
// from now on is in it.
func Capture(n *Namespace, name string) (*Recording, error) {
	link, err := n.link(name)
	if err != nil {
		return nil, err
	}
	fd, err := n.packetSocket(link.Attrs().Index, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	r := &Recording{
		file:    os.NewFile(uintptr(fd), "capture on "+name),
		buffer:  make([]byte, 2*largestFrame),
		arrived: make(chan struct{}),
	}
	r.socket, err = r.file.SyscallConn()
	if err == nil {
		// The kernel cuts it to its own limit; frames lost for lack of it are
		// reported by Stop.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	}
	if err != nil {
		r.file.Close()
		return nil, fmt.Errorf("capture on %s: %w", name, err)
	}
	r.reader.Go(func() {
		err := r.socket.Read(func(fd uintptr) (done bool) { return r.receive(int(fd)) })
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			r.fail(err)
		}
	})
	return r, nil
}

// Frames returns what was seen up to now.
func (r *Recording) Frames() []Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.frames)
}

// Wait returns when a frame that matches has been seen, or ctx has ended.
// Frames from before the call count.
func (r *Recording) Wait(ctx context.Context, matches func(Frame) bool) error {
	for seen := 0; ; {
		r.mu.Lock()
		frames, arrived := r.frames[seen:], r.arrived
		r.mu.Unlock()
		if slices.ContainsFunc(frames, matches) {
			return nil
		}
		seen += len(frames)
		select {
		case <-arrived:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stop ends the recording and returns all of it, with the frames that had
// passed when Stop was called. An error means that it is not complete.
func (r *Recording) Stop() ([]Frame, error) {
	r.fail(r.file.SetReadDeadline(time.Now()))
	r.reader.Wait()
	r.fail(r.socket.Control(func(fd uintptr) {
		r.receive(int(fd))
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		r.fail(err)
		if err == nil && stats.Drops > 0 {
			r.fail(fmt.Errorf("%d of %d frames were lost: capture for a shorter time", stats.Drops, stats.Packets))
		}
	}))
	r.fail(r.file.Close())
	return r.frames, r.err
}

// receive takes all frames that wait. It returns true where waiting for more
// makes no sense.
func (r *Recording) receive(fd int) bool {
	var control [128]byte
	for {
		n, controlled, _, from, err := unix.Recvmsg(fd, r.buffer, control[:], 0)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default: // ENETDOWN: the interface went down or is gone
			r.fail(err)
			return true
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		frame := Frame{
			Outgoing: ok && link.Pkttype == unix.PACKET_OUTGOING,
			Data:     withTag(r.buffer[:n], control[:controlled]),
			At:       time.Now(),
		}
		r.mu.Lock()
		r.frames = append(r.frames, frame)
		close(r.arrived)
		r.arrived = make(chan struct{})
		r.mu.Unlock()
	}
}

func (r *Recording) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
}
