// Package qemu runs guests of the tests in QEMU, each in the network namespace of its pod, as virt-launcher does.
// Everything is emulated: no /dev/kvm is needed, and the guest takes some seconds to boot.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
	"github.com/example/kubevirt-imds/tools/e2e/qemu/qmp"
	"github.com/example/kubevirt-imds/tools/e2e/rootfs"
	"github.com/example/kubevirt-imds/tools/podnet"
)

const (
	program       = "qemu-system-x86_64"
	debianPackage = "qemu-system-x86"

	// bootLimit is far more than a boot takes on an idle machine, which is 3 s.
	bootLimit = time.Minute
)

// Options say what a guest is.
type Options struct {
	Image rootfs.Image
	// Namespace is where QEMU runs: the pod's.
	Namespace *podnet.Namespace
	// NICs are the guest's eth0, eth1, ...
	NICs []NIC
	// Memory in MiB. 0: 192.
	Memory int
}

// NIC is a virtio NIC of the guest.
type NIC struct {
	// MAC of the NIC.
	MAC net.HardwareAddr
	// MTU that the NIC tells the guest, in bytes. 0: none.
	MTU int
	// Tap is the name of a tap that is there, in QEMU's namespace. Else Stream is the path of a unix socket on
	// which passt listens.
	Tap, Stream string
}

// Guest is a running QEMU with the guest in it.
type Guest struct {
	// Agent is the program in the guest. After a migration the target's is the one to use.
	Agent guestagent.Client

	monitor *qmp.Conn
	console string       // a file: what the guest's kernel and its first process have said
	folder  string       // of the console
	port    net.Conn     // of the agent, until there is a client
	said    bytes.Buffer // by QEMU; complete when it has ended
	ended   chan struct{}
	err     error // of its end; valid when ended is closed
	kill    context.CancelFunc
	closing sync.Once
	nics    int // so far, for their names
	options Options
}

// Available says whether guests can run on this machine, and if not, what would help.
func Available() error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("missing program %s, in which the guests run; on Debian: apt-get install --no-install-recommends %s",
			program, debianPackage)
	}
	return nil
}

// Boot starts a guest and returns when its agent answers. The guest lives until Close, or until this process ends.
func Boot(ctx context.Context, options Options) (*Guest, error) {
	g, err := launch(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("booting a guest: %w", err)
	}
	g.Agent = guestagent.Client{Conn: qmp.New(g.port)}
	limited, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("it has not booted within %s", bootLimit))
	defer cancel()
	if err := g.during(limited, func(ctx context.Context) error { return g.Agent.AwaitBoot(ctx, 0) }); err != nil {
		err = fmt.Errorf("booting a guest: %w; its console:\n%s", err, g.Console())
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// launch starts QEMU and opens its monitor.
func launch(ctx context.Context, options Options, more ...string) (*Guest, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return nil, err
	}
	g := &Guest{folder: folder, console: filepath.Join(folder, "console"), options: options}
	if err := g.start(ctx, more); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return g, nil
}

// arguments are those of QEMU. The file descriptors 3 and 4 are the monitor's and the agent's.
func (g *Guest) arguments() []string {
	memory := g.options.Memory
	if memory == 0 {
		memory = 192
	}
	arguments := []string{
		"-accel", "tcg", "-machine", "pc,usb=off,vmport=off,hpet=on", "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(memory),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", g.options.Image.Kernel, "-initrd", g.options.Image.Initramfs, "-append", kernelCommandLine,
		"-chardev", "file,id=console,path=" + g.console, "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-device", "virtio-serial-pci,id=ports",
		"-chardev", "socket,id=agent,fd=4", "-device", "virtserialport,chardev=agent,name=" + guestagent.Port,
	}
	for _, nic := range g.options.NICs {
		id := g.nextNIC()
		arguments = append(arguments, "-netdev", commaList(nic.netdev(id)), "-device", commaList(nic.device(id)))
	}
	return arguments
}

// kernelCommandLine leaves out what takes an emulated processor long and shows a test nothing. The clock is the HPET,
// whose rate is known: the rate of the TSC is measured at boot, and on a busy machine five times too low at times, so
// that all that the guest measures would be five times too long. (The ACPI timer's rate is known as well, but it
// wraps after 4.7 s, and a guest that was held up for longer would not know.)
const kernelCommandLine = "console=ttyS0 quiet panic=-1 reboot=k mitigations=off random.trust_cpu=on " +
	"no_timer_check clocksource=hpet cryptomgr.notests nokaslr net.ifnames=0"

// start starts the process.
func (g *Guest) start(ctx context.Context, more []string) error {
	monitorSocket, monitorEnd, err := socketPair()
	if err != nil {
		return err
	}
	defer monitorEnd.Close()
	agentSocket, agentEnd, err := socketPair()
	if err != nil {
		return err
	}
	defer agentEnd.Close()
	g.port = agentSocket

	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	g.kill = kill
	command := exec.CommandContext(running, program, append(g.arguments(), more...)...)
	command.ExtraFiles = []*os.File{monitorEnd, agentEnd}
	command.Stdout, command.Stderr = &g.said, &g.said
	// What the terminal sends at Ctrl-C is for this process alone.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.options.Namespace.Start(command); err != nil {
		return errors.Join(err, monitorSocket.Close(), agentSocket.Close())
	}
	g.ended = make(chan struct{})
	go func() {
		g.err = command.Wait()
		close(g.ended)
	}()
	err = g.during(ctx, func(ctx context.Context) (err error) {
		g.monitor = qmp.New(monitorSocket)
		_, err = g.monitor.Execute(ctx, "qmp_capabilities", nil)
		return err
	})
	if err != nil {
		g.kill()
		<-g.ended
		return err
	}
	return nil
}

// end is why QEMU is not there any more.
func (g *Guest) end() error {
	if g.err != nil {
		return fmt.Errorf("QEMU: %w: %s", g.err, strings.TrimSpace(g.said.String()))
	}
	return errors.New("QEMU has ended by itself")
}

// socketPair returns two ends of a connection, one of them for another process.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, other := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer own.Close()
	conn, err := net.FileConn(own)
	if err != nil {
		other.Close()
		return nil, nil, err
	}
	return conn, other, nil
}

// during calls f with a context that ends, too, when QEMU does.
func (g *Guest) during(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-g.ended:
			cancel(g.end())
		case <-over:
		}
	}()
	return f(ctx)
}

// Console is what the guest's kernel and its first process have said.
func (g *Guest) Console() string {
	text, err := os.ReadFile(g.console)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Close ends the guest as a power failure does. It may be called twice.
func (g *Guest) Close() error {
	var err error
	g.closing.Do(func() {
		g.kill()
		<-g.ended
		g.monitor.Close()
		if g.Agent.Conn != nil {
			g.Agent.Close()
		} else {
			g.port.Close()
		}
		err = os.RemoveAll(g.folder)
	})
	return err
}
