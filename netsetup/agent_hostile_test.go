package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/links"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// newNamespace makes a network namespace of a pod that nobody looks into.
func newNamespace(t *testing.T) *podnet.Namespace {
	t.Helper()
	namespace, err := podnet.NewNamespace("pod")
	must(t, err)
	t.Cleanup(func() { namespace.Close() })
	return namespace
}

// openFile opens a file for its descriptor.
func openFile(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// nestedNamespace is a network namespace that belongs to a user namespace of the pod's
// own making.
func nestedNamespace(t *testing.T) int {
	t.Helper()
	process := exec.Command("sleep", "infinity")
	process.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	must(t, process.Start())
	t.Cleanup(func() { process.Process.Kill(); process.Wait() })
	return openFile(t, fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid), unix.O_RDONLY)
}

// What a pod says or hands over that it should not is refused with the reason, and
// nobody else is served less for it.
func TestWhatAPodHandsOverIsChecked(t *testing.T) {
	n := runningNode(t)
	honestPod := newAgentPod(t, n, "honest", podnet.Options{Binding: podnet.Bridge})
	honestPod.serveGuest(t)
	own := newNamespace(t)
	message := func(bridge string, port int, pod string, version int) string {
		return fmt.Sprintf(`{"version":%d,"bridgeName":%q,"redirectPort":%d,"pod":%q}`, version, bridge, port, pod)
	}
	for name, c := range map[string]struct {
		message     string
		descriptors []int
		reason      string
	}{
		"no descriptor":                  {honest, nil, "no file descriptor, or more than one"},
		"two descriptors":                {honest, []int{own.FD(), own.FD()}, "no file descriptor, or more than one"},
		"many descriptors":               {honest, []int{own.FD(), own.FD(), own.FD(), own.FD(), own.FD()}, "no file descriptor, or more than one"},
		"a file":                         {honest, []int{openFile(t, "/proc/self/exe", unix.O_RDONLY)}, "is not a network namespace"},
		"a folder":                       {honest, []int{openFile(t, "/", unix.O_RDONLY)}, "is not a network namespace"},
		"a terminal":                     {honest, []int{openFile(t, "/dev/null", unix.O_RDWR)}, "is not a network namespace"},
		"another kind of namespace":      {honest, []int{openFile(t, "/proc/self/ns/mnt", unix.O_RDONLY)}, "is not a network namespace"},
		"a path to a namespace":          {honest, []int{openFile(t, own.Path(), unix.O_PATH)}, "is not a network namespace"},
		"the node's network":             {honest, []int{openFile(t, "/proc/thread-self/ns/net", unix.O_RDONLY)}, "the node's own network"},
		"a nested user namespace's":      {honest, []int{nestedNamespace(t)}, "belongs to another user namespace"},
		"another pod's":                  {honest, []int{honestPod.Pod.Pod.FD()}, "the pod with the UID honest has handed over the same"},
		"text":                           {"hello", []int{own.FD()}, "not the JSON"},
		"another JSON":                   {`["version",1]`, []int{own.FD()}, "not the JSON"},
		"half a message":                 {honest[:20], []int{own.FD()}, "not the JSON"},
		"two messages":                   {honest + honest, []int{own.FD()}, "not the JSON"},
		"a later version":                {message("", 0, "", 2), []int{own.FD()}, "has the version 2, and this agent understands up to 1: upgrade the agent first"},
		"a slash in the bridge's name":   {message("../tap0", 0, "", 1), []int{own.FD()}, `the bridge "../tap0" is not an interface name`},
		"a long bridge's name":           {message(strings.Repeat("b", 16), 0, "", 1), []int{own.FD()}, "is longer than 15 bytes"},
		"a slash in the pod's name":      {message("", 0, "../../etc/passwd", 1), []int{own.FD()}, `"../../etc/passwd" is not a name`},
		"a line break in the pod's name": {message("", 0, "vm\nlevel=ERROR", 1), []int{own.FD()}, "is not a name"},
		"the VM's port":                  {message("", 80, "", 1), []int{own.FD()}, "the redirect port 80 is not a port"},
		"a negative port":                {message("", -1, "", 1), []int{own.FD()}, "the redirect port -1 is not a port"},
		"1 MB of JSON":                   {`{"version":1,"pod":"` + strings.Repeat("p", 1<<20) + `"}`, []int{own.FD()}, "longer than 4096 bytes"},
		"deep JSON":                      {strings.Repeat("[", maxMessage), []int{own.FD()}, "not the JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			uid := strings.NewReplacer(" ", "-", "'", "").Replace(name)
			pod := speak(t, n.addPod(t, uid), func(conn *net.UnixConn) error {
				conn.SetWriteBuffer(4 << 20)
				return say(conn, c.message, c.descriptors...)
			})
			pod.await(t, stateFailed, c.reason)
			n.waitForAll(t, `msg="not served"`, "uid="+uid)
		})
	}
	honestPod.unplugEndpoint(t)
	n.waitForAll(t, "msg=repaired", "uid=honest")
	mustServe(t, honestPod.Pod, honestPod.guest)
	if n.inside(t, own) {
		t.Error("the agent is in a namespace that it should have refused")
	}
}

// Who says nothing, or goes on and on, or ends at once, and who takes nothing of what
// it is told, keeps the agent from nobody else.
func TestHowAPodSpeaks(t *testing.T) {
	n := runningNode(t)
	silent := speak(t, n.addPod(t, "silent"), func(*net.UnixConn) error { return nil })
	own := newNamespace(t)
	endless := speak(t, n.addPod(t, "endless"), func(conn *net.UnixConn) error {
		if err := say(conn, honest, own.FD()); err != nil {
			return err
		}
		go func() {
			for {
				if _, err := io.WriteString(conn, "more"); err != nil {
					return
				}
			}
		}()
		return nil
	})
	var times atomic.Int32
	speak(t, n.addPod(t, "ends"), func(conn *net.UnixConn) error { times.Add(1); return conn.Close() })
	for at := range 50 { // that do not accept
		path := filepath.Join(n.addPod(t, fmt.Sprint("deaf", at)), "imds.sock")
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path + ".new"}))
		must(t, unix.Listen(fd, 0))
		must(t, os.Chmod(path+".new", 0o666))
		must(t, os.Rename(path+".new", path))
	}
	pod := newAgentPod(t, n, "honest", podnet.Options{})
	pod.serveGuest(t)
	endless.await(t, stateFailed, "sent more after its message")
	silent.await(t, stateFailed, "said nothing within")
	if got := times.Load(); got > connectionsAtOnce+2 {
		t.Errorf("the agent connected %d times to a pod that ends each connection at once", got)
	}
	n.awaitCounts(t, func(c counts) bool {
		failed := 0
		for _, pods := range c.Failed {
			failed += pods
		}
		return c.Wired == 1 && failed == 53
	})
}

// No symbolic link is followed, in whichever part of the path, nor anything else taken
// for a socket.
func TestPathsAreNotFollowed(t *testing.T) {
	n := newNode(t)
	var connected atomic.Bool
	network := newNamespace(t)
	short, err := os.MkdirTemp("", "else")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	target := filepath.Join(short, nodeFolder)
	must(t, os.MkdirAll(target, 0o777))
	must(t, os.Mkdir(filepath.Join(short, containersFolder), 0o755))
	speak(t, target, func(conn *net.UnixConn) error {
		connected.Store(true)
		return say(conn, honest, network.FD())
	})
	for at, part := range []string{"", "volumes", "volumes/kubernetes.io~empty-dir", nodeFolder, nodeSocket} {
		uid := fmt.Sprint("link-", at)
		place := filepath.Join(n.folder, uid, part)
		must(t, os.MkdirAll(filepath.Dir(place), 0o755))
		if part != "" {
			must(t, os.Mkdir(filepath.Join(n.folder, uid, containersFolder), 0o755))
		}
		must(t, os.Symlink(filepath.Join(short, part), place))
	}
	for uid, make := range map[string]func(string) error{
		"file":   func(path string) error { return os.WriteFile(path, nil, 0o666) },
		"folder": func(path string) error { return os.Mkdir(path, 0o777) },
		"pipe":   func(path string) error { return unix.Mkfifo(path, 0o666) },
		"datagram": func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		},
	} {
		must(t, make(filepath.Join(n.addPod(t, uid), "imds.sock")))
	}
	thousand := n.addPod(t, "thousand")
	for at := range 1000 {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(thousand, fmt.Sprint("imds.sock", at))})
		must(t, err)
		defer listener.Close()
	}
	n.startAgent(t)
	has := n.awaitCounts(t, func(c counts) bool {
		return c.Failed["there is a symbolic link in the path of the pod's socket"] == 1 &&
			c.Failed["the file in the place of the pod's socket is not a socket"] == 3 &&
			c.Waiting["imds-server does not listen on its socket yet"] == 1
	})
	if len(has.Failed) != 3 || has.Wired != 0 {
		t.Errorf("the status file has %+v", has)
	}
	newAgentPod(t, n, "honest", podnet.Options{}).serveGuest(t)
	if connected.Load() || n.inside(t, network) {
		t.Error("the agent has followed a link")
	}
}

// A socket, and the folder that it is in, swapped for a link while the agent opens
// them, lead it nowhere else.
func TestPathsAreSwapped(t *testing.T) {
	n := newNode(t)
	var connected atomic.Bool
	aside, err := os.MkdirTemp("", "else")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(aside) })
	speak(t, aside, func(conn *net.UnixConn) error { connected.Store(true); return conn.Close() })
	n.startAgent(t)

	var swapping sync.WaitGroup
	defer swapping.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	swap := func(one, other string) {
		swapping.Go(func() {
			for ctx.Err() == nil {
				unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
			}
		})
	}
	var tried atomic.Int32
	volume := n.addPod(t, "socket")
	must(t, os.Symlink(filepath.Join(aside, "imds.sock"), filepath.Join(volume, "other")))
	speak(t, volume, func(conn *net.UnixConn) error { tried.Add(1); return conn.Close() })
	swap(filepath.Join(volume, "imds.sock"), filepath.Join(volume, "other"))
	volume = n.addPod(t, "folder")
	must(t, os.Symlink(aside, volume+".other"))
	speak(t, volume, func(conn *net.UnixConn) error { tried.Add(1); return conn.Close() })
	swap(volume, volume+".other")

	newAgentPod(t, n, "honest", podnet.Options{}).serveGuest(t)
	for deadline := time.Now().Add(time.Minute); tried.Load() < connectionsAtOnce; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the agent has found the sockets %d times", tried.Load())
		}
	}
	if connected.Load() {
		t.Error("the agent has followed a link")
	}
}

// cpuTime is what a process has used.
func (n *node) cpuTime(t *testing.T) time.Duration {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.process.Process.Pid))
	must(t, err)
	_, after, _ := strings.Cut(string(content), ") ")
	fields := strings.Fields(after)
	var user, system int
	_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	must(t, err)
	const tick = 10 * time.Millisecond
	return time.Duration(user+system) * tick
}

// mustUseLittle fails where the agent uses more than a share of a CPU while something
// is done again and again in a pod.
func (n *node) mustUseLittle(t *testing.T, share float64, again func()) {
	t.Helper()
	const during = 5 * time.Second
	before, began, times := n.cpuTime(t), time.Now(), 0
	for time.Since(began) < during {
		again()
		times++
	}
	used := n.cpuTime(t) - before
	t.Logf("%s of CPU in %s for %d times", used, during, times)
	if used > time.Duration(share*float64(during)) {
		t.Errorf("the agent used %s of CPU in %s", used, during)
	}
}

// A pod that renames files in its volume all day costs next to nothing.
func TestRenamesInAPodsVolume(t *testing.T) {
	n := runningNode(t)
	volume := n.addPod(t, "hostile")
	one, other := filepath.Join(volume, "one"), filepath.Join(volume, "other")
	must(t, os.WriteFile(one, nil, 0o644))
	n.mustUseLittle(t, 0.1, func() {
		for range 1000 {
			must(t, os.Rename(one, other))
			must(t, os.Rename(other, one))
		}
	})
	newAgentPod(t, n, "honest", podnet.Options{}).serveGuest(t)
}

// A pod that changes its links all day is slowed, and no other.
func TestAPodChangesItsLinksAllDay(t *testing.T) {
	n := runningNode(t)
	honestPod := newAgentPod(t, n, "honest", podnet.Options{})
	honestPod.serveGuest(t)
	hostile := newAgentPod(t, n, "hostile", podnet.Options{})
	hostile.serveGuest(t)
	handle := hostile.Pod.Pod.Netlink()
	tap := link(t, hostile.Pod, "tap0")
	mtu := tap.Attrs().MTU
	change := func() {
		mtu ^= 1
		must(t, handle.LinkSetMTU(tap, mtu))
	}
	for began := time.Now(); time.Since(began) < 3*time.Second; { // it has a burst first
		change()
	}
	n.mustUseLittle(t, 0.2, change)
	ctx, cancel := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	changing.Go(func() {
		for ctx.Err() == nil {
			mtu ^= 1
			if err := handle.LinkSetMTU(tap, mtu); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 3 {
		began := time.Now()
		honestPod.unplugEndpoint(t)
		honestPod.awaitPlugged(t)
		t.Logf("meanwhile another pod is repaired within %s", time.Since(began))
	}
	cancel()
	changing.Wait()
	mustServe(t, honestPod.Pod, honestPod.guest)
	hostile.unplugEndpoint(t)
	hostile.awaitPlugged(t)
}

// A pod with more links than a VM has is refused, for little memory.
func TestANamespaceFullOfLinks(t *testing.T) {
	n := runningNode(t)
	full := newNamespace(t)
	have, err := full.Netlink().LinkList()
	must(t, err)
	list := func() error {
		return full.Do(func() error { _, err := links.List(); return err })
	}
	add := func(at int) { // two links: the kernel takes minutes to remove as many bridges
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprint("a", at)
		must(t, full.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprint("b", at)}))
	}
	const most, many = 512, 10_000
	at := len(have)
	for ; at+2 <= most; at += 2 {
		add(at)
	}
	must(t, list())
	add(at)
	if err := list(); err == nil {
		t.Errorf("%d links are read", at+2)
	}
	before := memory(t, n.process.Process.Pid, "RssAnon")
	hostile := handOver(t, n.addPod(t, "hostile"), full)
	hostile.await(t, stateFailed, "more than 512 links")
	for at += 2; at < many; at += 2 { // while it is looked at
		add(at)
	}
	honestPod := newAgentPod(t, n, "honest", podnet.Options{})
	honestPod.serveGuest(t)
	began := time.Now()
	honestPod.unplugEndpoint(t)
	honestPod.awaitPlugged(t)
	after := memory(t, n.process.Process.Pid, "RssAnon")
	t.Logf("RssAnon from %d to %d kB for %d links; beside it another pod is repaired within %s", before, after, many, time.Since(began))
	if after-before > 16<<10 {
		t.Errorf("its memory grew from %d to %d kB", before, after)
	}
}

// memory is a line of a process's status, in kB.
func memory(t *testing.T, pid int, name string) (kB int) {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, after, _ := strings.Cut(string(content), name+":")
	_, err = fmt.Sscan(after, &kB)
	must(t, err)
	return kB
}

// A pod whose network goes while it is wired is let go, and a connection that was
// passed on to somebody else holds nothing.
func TestAPodEndsWhileItIsWired(t *testing.T) {
	n := runningNode(t)
	for round := range 20 {
		uid := fmt.Sprint("uid", round)
		volume, namespace := n.addPod(t, uid), newNamespace(t)
		server := handOver(t, volume, namespace)
		if round%2 == 0 {
			<-server.conns // it is held, and never closed before the folder goes
		} else {
			server.close()
		}
		must(t, os.RemoveAll(filepath.Join(n.folder, uid)))
		n.awaitOutside(t, namespace)
	}
	n.awaitCounts(t, func(c counts) bool { return c.Wired == 0 && len(c.Waiting)+len(c.Failed) == 0 })
}

// A fault that ends one pod's goroutine, or has it hang, is that pod's alone.
func TestAFaultIsOnePodsAlone(t *testing.T) {
	n := newNode(t)
	var log lockedBuffer
	log.written = make(chan struct{}, 1)
	a, err := newAgent(n.folder, "", n.status, slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	forever := make(chan struct{})
	defer close(forever)
	a.keep = func(ctx context.Context, to target, tell func(outcome) bool, hold func(context.Context)) {
		switch to.bridgeName {
		case "panics":
			panic("a bridge that nobody has thought of")
		case "hangs":
			<-forever
		}
		keep(ctx, to, tell, hold)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.run(ctx) }()
	defer func() { cancel(); must(t, <-ended) }()
	faulty := func(name string) *standIn {
		network := newNamespace(t)
		return speak(t, n.addPod(t, name), func(conn *net.UnixConn) error {
			return say(conn, fmt.Sprintf(`{"version":1,"bridgeName":%q}`, name), network.FD())
		})
	}
	faulty("hangs")
	faulty("panics").await(t, stateFailed, "a fault of the agent, please report it: a bridge that nobody has thought of")
	log.wait(t, "agent_hostile_test.go") // the place
	var told strings.Builder
	a.metrics.write(&told)
	if want := `imds_agent_pods{state="failed",reason="fault"} 1`; !strings.Contains(told.String(), want) {
		t.Errorf("no %s in\n%s", want, &told)
	}
	newAgentPod(t, n, "honest", podnet.Options{}).serveGuest(t)
}

// lingering makes a TCP connection in a network whose first end has SO_LINGER, and data
// that the second end never takes. It needs no capability.
func lingering(t *testing.T, network *podnet.Namespace) (first, second int) {
	t.Helper()
	lo, err := network.Netlink().LinkByName("lo")
	must(t, err)
	must(t, network.Netlink().LinkSetUp(lo))
	must(t, network.Do(func() error {
		listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(listener)
		must(t, unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		must(t, unix.Listen(listener, 1))
		at, err := unix.Getsockname(listener)
		must(t, err)
		first, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Connect(first, at))
		second, _, err = unix.Accept(listener)
		must(t, err)
		must(t, unix.SetNonblock(first, true))
		for err == nil {
			_, err = unix.Write(first, make([]byte, 1<<16))
		}
		return unix.SetsockoptLinger(first, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1 << 20})
	}))
	return first, second
}

// Whatever a pod sends besides, a socket among them whose close takes days, nothing of it
// is left in the agent when the pod is gone.
func TestSocketsThatLinger(t *testing.T) {
	n := runningNode(t)
	threads := func() int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.process.Process.Pid))
		must(t, err)
		return len(all)
	}
	before := threads()
	const pods = 12
	for at := range pods {
		uid := fmt.Sprint("hostile", at)
		network := newNamespace(t)
		first, second := lingering(t, network)
		var once sync.Once
		server := speak(t, n.addPod(t, uid), func(conn *net.UnixConn) (err error) {
			once.Do(func() { // the agent comes again
				err = say(conn, honest, network.FD())
				say(conn, "x", first, second)
				go unix.Close(first) // where this is the last reference, it is we who wait
				go unix.Close(second)
			})
			return err
		})
		<-server.conns
		server.close()
		must(t, os.RemoveAll(filepath.Join(n.folder, uid)))
	}
	n.awaitCounts(t, func(c counts) bool { return c.Wired == 0 && len(c.Waiting)+len(c.Failed) == 0 })
	for deadline := time.Now().Add(20 * time.Second); threads() > before+pods/2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads, before %d", threads(), before)
		}
	}
	began := time.Now()
	n.stopAgent(t, os.Interrupt)
	if took := time.Since(began); took >= endWithin {
		t.Errorf("it took %s to end", took)
	}
}

// A pod that has ended is let go, whoever holds its connection.
func TestPodThatHasEndedAndHoldsOn(t *testing.T) {
	n := runningNode(t)
	network := newNamespace(t)
	server := handOver(t, n.addPod(t, "uid"), network)
	server.await(t, stateWaiting, "")
	<-server.conns // another pod has it
	server.listener.Close()
	must(t, os.RemoveAll(filepath.Dir(n.volume("uid"))))
	n.awaitOutside(t, network)
	n.awaitCounts(t, func(c counts) bool { return len(c.Waiting)+len(c.Failed) == 0 })
}
