package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The places in a pod's folder. The kubelet makes containers when all volumes are
// there.
const (
	containersFolder = "containers"
	nodeFolder       = "volumes/kubernetes.io~empty-dir/imds-node"
	nodeSocket       = nodeFolder + "/imds.sock"
)

// scanEvery is how seldom all pods are looked for without a reason, and scanAgain when
// they are where one could not be looked at.
const (
	scanEvery = 10 * time.Minute
	scanAgain = 5 * time.Second
)

// podFolder is what is known of a pod's folder.
type podFolder struct {
	watch int                // on it, until it has containers; 0: none
	end   context.CancelFunc // of the goroutine that wires the pod; nil: it does not ask
}

// openBeneath opens a path in a folder, without following a symbolic link in any part
// of it.
func openBeneath(folder int, path string, flags uint64) (int, error) {
	return unix.Openat2(folder, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// hasFolder says whether a folder has a folder at a path.
func hasFolder(folder int, path string) bool {
	fd, err := openBeneath(folder, path, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// follow finds the pods that ask, from now on and those that are there, until the
// context ends.
func (a *agent) follow(ctx context.Context) error {
	const mask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	pods, err := a.watch.add(a.folder, mask, nil)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { a.watch.inotify.SetReadDeadline(time.Now()) })
	if err := a.scan(ctx); err != nil {
		return err
	}
	buffer := make([]byte, 64<<10)
	for {
		next := scanEvery
		if a.overlooked {
			next = scanAgain
		}
		a.watch.inotify.SetReadDeadline(time.Now().Add(next))
		if ctx.Err() != nil {
			return nil
		}
		n, err := a.watch.inotify.Read(buffer)
		scan := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !scan {
			return fmt.Errorf("follow the folder of the pods: %w", err)
		}
		for _, e := range inotifyEvents(buffer[:n]) {
			switch uid, isStarting := a.starting[e.watch]; {
			case e.mask&unix.IN_Q_OVERFLOW != 0:
				scan = true
			case e.watch == pods && e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0:
				return errors.New("the folder of the pods is gone")
			case e.watch == pods && e.mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
				a.forget(e.name)
			case e.watch == pods:
				a.discover(ctx, e.name)
			case isStarting && e.name == containersFolder:
				a.discover(ctx, uid)
			case !isStarting:
				a.watch.arrived(e.watch)
			}
		}
		if scan && ctx.Err() == nil {
			if err := a.scan(ctx); err != nil {
				return err
			}
		}
	}
}

// scan looks at all folders that there are, and has the pods that wait for their
// sockets look.
func (a *agent) scan(ctx context.Context) error {
	a.watch.allArrived()
	a.overlooked = false
	fd, err := openBeneath(a.folder, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	folder := os.NewFile(uintptr(fd), "pods")
	defer folder.Close()
	there := map[string]bool{}
	for {
		names, err := folder.Readdirnames(1000)
		for _, uid := range names {
			there[uid] = true
			a.discover(ctx, uid)
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("list the pods: %w", err)
		}
	}
	for uid := range a.found {
		if !there[uid] {
			a.forget(uid)
		}
	}
	return nil
}

// discover looks whether a pod asks, once it has its volumes, and watches its folder
// until then.
func (a *agent) discover(ctx context.Context, uid string) {
	f := a.found[uid]
	if f != nil && f.end != nil {
		return
	}
	folder, err := openBeneath(a.folder, uid, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		// Else it is a file, or gone again.
		a.overlooked = a.overlooked || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
		return
	}
	defer unix.Close(folder)
	if f == nil {
		f = &podFolder{}
		a.found[uid] = f
	}
	if f.watch == 0 {
		if f.watch, err = a.watch.add(folder, unix.IN_CREATE|unix.IN_MOVED_TO, nil); err != nil {
			a.overlooked = true
			a.report.tellOf("pod found late, its event was lost", fmt.Errorf("pod with the UID %.64q: %w", uid, err))
		} else {
			a.starting[f.watch] = uid
		}
	}
	if !hasFolder(folder, containersFolder) {
		return
	}
	a.unwatch(f)
	if !hasFolder(folder, nodeFolder) {
		return
	}
	ctx, f.end = context.WithCancel(ctx)
	a.running.Go(func() { newPodWiring(a, uid).run(ctx) })
}

// forget lets go of a pod whose folder is gone.
func (a *agent) forget(uid string) {
	f := a.found[uid]
	if f == nil {
		return
	}
	a.unwatch(f)
	if f.end != nil {
		f.end()
	}
	delete(a.found, uid)
}

func (a *agent) unwatch(f *podFolder) {
	if f.watch != 0 {
		a.watch.remove(f.watch)
		delete(a.starting, f.watch)
		f.watch = 0
	}
}

// watcher is the one inotify instance of the agent: a user has few.
type watcher struct {
	inotify *os.File
	fd      int // of the same: asking the file for it would make it block

	// mu is held while a watch is added, so that its event finds its channel.
	mu       sync.Mutex
	channels map[int]chan<- struct{}
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w; raise the sysctl fs.inotify.max_user_instances", err)
	}
	return &watcher{inotify: os.NewFile(uintptr(fd), "inotify"), fd: fd, channels: map[int]chan<- struct{}{}}, nil
}

// add watches a folder. The channel gets a value at the first event.
func (w *watcher) add(folder int, mask uint32, channel chan<- struct{}) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch, err := unix.InotifyAddWatch(w.fd, descriptor(folder), mask|unix.IN_ONLYDIR)
	if err != nil {
		return 0, fmt.Errorf("watch a folder: %w; raise the sysctl fs.inotify.max_user_watches", err)
	}
	if channel != nil {
		w.channels[watch] = channel
	}
	return watch, nil
}

func (w *watcher) remove(watch int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.channels, watch)
	unix.InotifyRmWatch(w.fd, uint32(watch)) // it may be gone already
}

// arrived tells who waits for the event of a watch.
func (w *watcher) arrived(watch int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if channel := w.channels[watch]; channel != nil {
		channel <- struct{}{} // it has room for one
		delete(w.channels, watch)
	}
}

// allArrived tells all, since events may have been lost.
func (w *watcher) allArrived() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, channel := range w.channels {
		channel <- struct{}{}
	}
	clear(w.channels)
}

// descriptor is a path to what a descriptor stands for.
func descriptor(fd int) string { return filepath.Join("/proc/self/fd", fmt.Sprint(fd)) }

type inotifyEvent struct {
	watch int
	mask  uint32
	name  string
}

// inotifyEvents reads events as the kernel writes them (struct inotify_event).
func inotifyEvents(data []byte) (all []inotifyEvent) {
	for len(data) >= unix.SizeofInotifyEvent {
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(data[12:]))
		all = append(all, inotifyEvent{
			watch: int(int32(binary.NativeEndian.Uint32(data))),
			mask:  binary.NativeEndian.Uint32(data[4:]),
			name:  unix.ByteSliceToString(data[unix.SizeofInotifyEvent:end]),
		})
		data = data[end:]
	}
	return all
}
