package main

import (
	"context"
	"net"
	"path"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// letGo runs f, which closes what may be the last reference to a file of a pod's. Such a
// close may wait for as long as the pod wants (SO_LINGER), but not where it comes with a
// thread's end (inet_release in net/ipv4/af_inet.c: PF_EXITING). So a thread that ends
// holds copies of all descriptors meanwhile.
func letGo(f func()) {
	held, closed := make(chan struct{}), make(chan struct{})
	var hold func()
	hold = func() {
		runtime.LockOSThread() // and never unlocked: it ends with this function
		if unix.Gettid() == unix.Getpid() {
			go hold() // the main thread never ends
			<-closed
			runtime.UnlockOSThread()
			return
		}
		unix.Unshare(unix.CLONE_FILES) // if it fails, f may wait
		close(held)
		<-closed
	}
	go hold()
	<-held
	f()
	close(closed)
}

// saysMore waits until the connection has ended, or has something to be read. It leaves
// that there: with it descriptors would be taken, or dropped by the kernel.
func saysMore(conn *net.UnixConn) (says bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		says = n > 0
		return err != unix.EAGAIN
	})
	return says
}

// endWithVolume calls end when the pod's volume is gone: the kubelet removes it when the
// pod has ended, and leaves the pod's folder, while somebody else may hold the pod's
// connection. The folder that is watched is the kubelet's: no pod writes there.
func (p *podWiring) endWithVolume(ctx context.Context, end func()) {
	for ctx.Err() == nil {
		folder, err := openBeneath(p.agent.folder, path.Dir(p.uid+"/"+nodeFolder), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			end()
			return
		}
		changed := make(chan struct{}, 1)
		watch, watchErr := p.agent.watch.add(folder, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONESHOT, changed)
		there := hasFolder(folder, path.Base(nodeFolder))
		unix.Close(folder)
		if there && watchErr == nil {
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
		p.agent.watch.remove(watch)
		if !there {
			end()
		}
		if !there || watchErr != nil {
			return // without a watch the connection's end counts
		}
	}
}

// threadTime is the CPU time that the calling thread has used.
func threadTime() time.Duration {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_THREAD, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
