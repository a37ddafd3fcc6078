package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/tokentest"
	"github.com/example/kubevirt-imds/tools/podnet/netnstest"
)

// sidecarUser is the uid and gid of the container.
const sidecarUser = 65532

// What imds-init gives to veth-imds, and the addresses as the guest dials them.
var (
	imdsPrefix     = netip.MustParsePrefix("169.254.169.254/32")
	imdsIPv6Prefix = netip.MustParsePrefix("fe80::a9fe:a9fe/64")
	imdsAddr       = netip.MustParseAddrPort("169.254.169.254:80")
	imdsIPv6Addr   = netip.MustParseAddrPort("[fe80::a9fe:a9fe%eth0]:80")
)

// asSidecar makes a command run as the container does: as an ordinary user and
// without a capability. Real root changes its uid. Root of a user namespace has
// no other uid to change to, but can give the command a user namespace below,
// where the uid is that and where nothing is allowed to the network namespace.
func asSidecar(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if isRealRoot := bytes.Contains(uidMap, []byte("4294967295")); isRealRoot {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: sidecarUser, Gid: sidecarUser}}
		return cmd
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: sidecarUser, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: sidecarUser, HostID: 0, Size: 1}},
	}
	return cmd
}

// sidecarEnvironment is the environment with the defaults of the listener, and a
// token that the sidecar's user can read.
func sidecarEnvironment(t *testing.T) map[string]string {
	t.Helper()
	volume := tokentest.NewVolume(t, freshToken())
	if err := os.Chmod(filepath.Dir(volume.Dir), 0o755); err != nil { // t.TempDir's parent is private
		t.Fatal(err)
	}
	variables := environment(netip.AddrPort{}, volume.TokenPath())
	delete(variables, "IMDS_LISTEN_ADDR")
	delete(variables, "IMDS_LISTEN_DEVICE")
	return variables
}

// allowPort80 sets the sysctl that the sidecar's patch sets.
func allowPort80(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("80"), 0); err != nil {
		t.Fatal(err)
	}
}

// makeEndpoint makes what imds-init makes, and a guest behind it.
func makeEndpoint(t *testing.T, guest *netnstest.Namespace) {
	t.Helper()
	makeEndpointIPv4(t, guest)
	if err := netnstest.AddAddress("veth-imds", imdsIPv6Prefix); err != nil {
		t.Fatal(err)
	}
	guest.Do(t, func() error { return netnstest.AddAddress("eth0", netip.MustParsePrefix("fe80::2/64")) })
}

// makeEndpointIPv4 makes what imds-init makes in a pod without IPv6.
func makeEndpointIPv4(t *testing.T, guest *netnstest.Namespace) {
	t.Helper()
	err := errors.Join(
		netnstest.AddVeth("veth-imds", "eth0", guest),
		netnstest.SetUp("veth-imds"),
		netnstest.AddAddress("veth-imds", imdsPrefix),
		netnstest.AddLoopbackRoute("veth-imds"),
	)
	if err != nil {
		t.Fatal(err)
	}
	guest.Do(t, func() error {
		return errors.Join(netnstest.AddAddress("eth0", netip.MustParsePrefix("169.254.1.2/16")), netnstest.SetUp("eth0"))
	})
}

// ask asks for the identity over IPv4, in the namespace of the caller.
func ask() error { return askAt(imdsAddr, "169.254.169.254") }

// askIPv6 does so over IPv6, with each Host that clients send.
func askIPv6() error {
	var errs []error
	for _, host := range []string{"[fe80::a9fe:a9fe]", "[fe80::a9fe:a9fe%eth0]", "fe80::a9fe:a9fe%eth0", "[fe80:0:0:0:0:0:a9fe:a9fe]"} {
		errs = append(errs, askAt(imdsIPv6Addr, host))
	}
	return errors.Join(errs...)
}

func askAt(addr netip.AddrPort, host string) error {
	device, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if addr.Addr().Is6() { // package net remembers the numbers of other namespaces' names
		addr = netip.AddrPortFrom(addr.Addr().WithZone(strconv.Itoa(device.Index)), addr.Port())
	}
	conn, err := net.DialTimeout("tcp", addr.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "GET /v1/identity HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the status is %s", response.Status)
	}
	return response.Body.Close()
}

// As the sidecar runs: on port 80, by the defaults, as an ordinary user without
// a capability, started before there is anything to listen on.
func TestSidecarWithoutPrivileges(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		allowPort80(t)
		variables := sidecarEnvironment(t)
		s := start(t, asSidecar(t, program(variables)), imdsAddr)
		s.log.wait(t, `msg=waiting for="device veth-imds"`)
		wantNoPrivilege(t, s.Process.Pid)

		guest := netnstest.New(t)
		makeEndpoint(t, guest)
		s.log.wait(t, "msg=listening")
		s.log.wait(t, "msg=listening")
		guest.Do(t, ask)
		guest.Do(t, askIPv6)
		if output, err := asSidecar(t, program(variables, "probe")).CombinedOutput(); err != nil {
			t.Errorf("probe: %v: %s", err, output)
		}

		// imds-init makes the pair anew if somebody deleted it.
		if err := netnstest.DeleteLink("veth-imds"); err != nil {
			t.Fatal(err)
		}
		s.log.wait(t, `msg=waiting for="device veth-imds"`)
		s.log.wait(t, `msg=waiting for="device veth-imds"`)
		other := netnstest.New(t)
		makeEndpoint(t, other)
		s.log.wait(t, "msg=listening")
		s.log.wait(t, "msg=listening")
		other.Do(t, ask)
		other.Do(t, askIPv6)
		s.stop(t)
	})
}

// As the sidecar runs beside passt: port 80 is the VM's, and passt asks for the
// guest from inside the pod, by the address itself. It has the guest's places and
// not the probe's.
func TestSidecarBesidePasst(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		const redirected = "169.254.169.254:60080"
		variables := sidecarEnvironment(t)
		variables["IMDS_REDIRECT_PORT"] = "60080"
		s := start(t, asSidecar(t, program(variables)), netip.MustParseAddrPort(redirected))
		allowPort80(t)
		makeEndpoint(t, netnstest.New(t))
		s.log.wait(t, "msg=listening")

		// passt refuses its guest a local address that it could bind itself.
		if err := bindAlone(imdsPrefix.Addr(), 80); err != syscall.EADDRINUSE {
			t.Errorf("port 80 of the address is free for who asks as passt does: %v", err)
		}
		vm, err := net.Listen("tcp", ":80")
		if err != nil {
			t.Fatalf("the VM has not its own port 80: %v", err)
		}
		defer vm.Close()

		hosts := map[string]string{"169.254.169.254": "200", "169.254.169.254:80": "200", redirected: "403"}
		for host, want := range hosts {
			if answer := askHost(t, redirected, host); !strings.HasPrefix(answer, "HTTP/1.1 "+want) {
				t.Errorf("Host %s is answered %q, want %s", host, answer, want)
			}
		}
		// More than the pod's probes may have at one time, and fewer than the guest.
		const several = 32
		var guests []net.Conn
		for range several {
			conn, err := net.Dial("tcp4", redirected)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			guests = append(guests, conn)
		}
		for range several {
			if output, err := asSidecar(t, program(variables, "probe")).CombinedOutput(); err != nil {
				t.Fatalf("probe: %v: %s", err, output)
			}
		}
		for _, conn := range guests {
			if answer := converse(t, conn, "169.254.169.254"); !strings.HasPrefix(answer, "HTTP/1.1 200") {
				t.Errorf("a connection of the guest that was there before is answered %q", answer)
			}
		}

		// Started again it finds the VM's port taken, which is as good.
		s.stop(t)
		s = start(t, asSidecar(t, program(variables)), netip.MustParseAddrPort(redirected))
		s.log.wait(t, "msg=listening")
	})
}

// A pod without IPv6 is served over IPv4 at once, and nothing is wrong with it.
func TestSidecarInAPodWithoutIPv6(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		allowPort80(t)
		for _, conf := range []string{"all", "default"} {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/disable_ipv6", []byte("1"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has none to switch off
				t.Fatal(err)
			}
		}
		guest := netnstest.New(t)
		makeEndpointIPv4(t, guest)
		variables := sidecarEnvironment(t)
		s := start(t, asSidecar(t, program(variables)), imdsAddr)
		s.log.wait(t, "msg=listening address=169.254.169.254:80 device=veth-imds")
		guest.Do(t, ask)
		if output, err := asSidecar(t, program(variables, "probe")).CombinedOutput(); err != nil {
			t.Errorf("probe: %v: %s", err, output)
		}
		for _, line := range s.stop(t) {
			if !strings.Contains(line, "level=INFO") {
				t.Errorf("the log has the line %q", line)
			}
		}
	})
}

// bindAlone binds a TCP socket without SO_REUSEADDR, and closes it.
func bindAlone(ip netip.Addr, port int) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: ip.As4()})
}

// askHost returns the first line of the answer to a request with this Host.
func askHost(t *testing.T, address, host string) string {
	t.Helper()
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return converse(t, conn, host)
}

func converse(t *testing.T, conn net.Conn, host string) string {
	t.Helper()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "GET /v1/identity HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Errorf("reading the answer: %v", err)
	}
	return line
}

// Where the link-local address is the first, or the only one, it is probed.
func TestProbeOfTheIPv6Address(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t, netnstest.New(t))
		variables := sidecarEnvironment(t)
		variables["IMDS_LISTEN_ADDR"] = "[fe80::a9fe:a9fe]:8080"
		s := start(t, asSidecar(t, program(variables)), netip.MustParseAddrPort("[fe80::a9fe:a9fe%veth-imds]:8080"))
		s.log.wait(t, "msg=listening")
		if output, err := asSidecar(t, program(variables, "probe")).CombinedOutput(); err != nil {
			t.Errorf("probe: %v: %s", err, output)
		}
		s.stop(t)
	})
}

// The hop limit is that of both families.
func TestHopLimitOfBothFamilies(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		guest := netnstest.New(t)
		makeEndpoint(t, guest)
		variables := sidecarEnvironment(t)
		variables["IMDS_HOP_LIMIT"] = "1"
		s := start(t, program(variables), imdsAddr)
		s.log.wait(t, "msg=listening")
		s.log.wait(t, "msg=listening")
		var capture int
		guest.Do(t, func() (err error) {
			capture, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, int(networkOrder(syscall.ETH_P_ALL)))
			if err != nil {
				return err
			}
			return syscall.SetsockoptTimeval(capture, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 5})
		})
		defer syscall.Close(capture)
		guest.Do(t, ask)
		wantHopLimit(t, capture, syscall.ETH_P_IP, 8, 9)
		guest.Do(t, askIPv6)
		wantHopLimit(t, capture, syscall.ETH_P_IPV6, 7, 6)
		s.stop(t)
	})
}

// wantHopLimit reads the next TCP packet that came to the guest by a protocol; the
// hop limit and TCP's number are at these offsets.
func wantHopLimit(t *testing.T, capture int, protocol uint16, limitAt, nextAt int) {
	t.Helper()
	packet := make([]byte, 2048)
	for {
		n, from, err := syscall.Recvfrom(capture, packet, 0)
		if err != nil {
			t.Fatal(err)
		}
		link := from.(*syscall.SockaddrLinklayer)
		if n >= 40 && link.Pkttype != syscall.PACKET_OUTGOING && link.Protocol == networkOrder(protocol) && packet[nextAt] == syscall.IPPROTO_TCP {
			if packet[limitAt] != 1 {
				t.Errorf("the answer's hop limit is %d, want 1", packet[limitAt])
			}
			return
		}
	}
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// wantNoPrivilege checks the user and the capabilities of a process.
func wantNoPrivilege(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if strings.HasPrefix(name, "Cap") && name != "CapBnd" && strings.Trim(value, "0") != "" {
			t.Errorf("the process has capabilities: %s", line)
		}
	}
}

// Without the sysctl the server ends, since no event would ever change that.
func TestPort80WithoutTheSysctl(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t, netnstest.New(t))
		output, err := asSidecar(t, program(sidecarEnvironment(t))).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(string(output), "net.ipv4.ip_unprivileged_port_start to 80 or less") {
			t.Errorf("got %v: %s; want exit status 1 and the sysctl", err, output)
		}
	})
}

// Beside passt too: the guest's port is held, not listened on.
func TestHeldPortWithoutTheSysctl(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t, netnstest.New(t))
		variables := sidecarEnvironment(t)
		variables["IMDS_REDIRECT_PORT"] = "60080"
		output, err := asSidecar(t, program(variables)).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(string(output), "net.ipv4.ip_unprivileged_port_start to 80 or less") {
			t.Errorf("got %v: %s; want exit status 1 and the sysctl", err, output)
		}
	})
}
