package sandbox

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctls of the whole machine that a kubelet sets where they differ (kubelet: pkg/kubelet/cm,
// setupKernelTunables). A file that already holds the kubelet's value lies over each of them.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// initialize is pid 1 of the sandbox: it prepares the namespaces it was started in, says so, and then reaps
// orphans until it is killed.
func initialize(config Config) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)

	prepared := os.NewFile(preparedDescriptor, "prepared")
	for _, step := range []func() error{
		func() error { return joinCgroups(config.Name) },
		prepareMounts,
		func() error { return prepareNetwork(config) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(prepared, "prepared"); err != nil {
		return err
	}
	prepared.Close()

	for range children {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// prepareMounts makes a tree in which nothing that is written to the fixed paths of kubelet, containerd and
// the CNI plugins reaches the machine's disk.
func prepareMounts() error {
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		// Mounts of volumes must reach the containers, which only a shared tree lets them.
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "/var/log", "tmpfs", 0, "mode=755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, folder := range []string{"/etc", "/var/lib"} {
		if err := overlay(folder); err != nil {
			return err
		}
	}
	for name, value := range sysctls {
		if err := coverSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// overlay lets a folder be seen as it is, and keeps what is written to it in memory.
func overlay(folder string) error {
	memory := filepath.Join("/run/overlay", folder)
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	for _, made := range []string{upper, work} {
		if err := os.MkdirAll(made, 0o755); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", folder, upper, work)
	if err := unix.Mount("overlay", folder, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay on %s (the kernel needs overlayfs): %w", folder, err)
	}
	return nil
}

// coverSysctl lays a file with the value over the sysctl.
func coverSysctl(name, value string) error {
	file := filepath.Join("/run/sysctl", name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover sysctl %s: %w", name, err)
	}
	return nil
}

// prepareNetwork gives the loopback interface the sandbox's address, and the cluster IPs a route.
func prepareNetwork(config Config) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set loopback interface up: %w", err)
	}
	address, err := netlink.ParseAddr(config.Address + "/32")
	if err != nil {
		return fmt.Errorf("address %q of the sandbox: %w", config.Address, err)
	}
	if err := netlink.AddrAdd(loopback, address); err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	if err := routeServices(config.Services, address.IP); err != nil {
		return err
	}
	// Of this network namespace only.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switch forwarding on: %w", err)
	}
	return nil
}

// routeServices routes the cluster IPs to a bridge with nothing behind it, where a node has its default route.
// Without a route a local connection fails before kube-proxy's rules can redirect it; with one to the loopback
// interface the kernel does not deliver the rejection of connections to a Service without endpoints, which then
// hang.
func routeServices(prefix string, source net.IP) error {
	_, services, err := net.ParseCIDR(prefix)
	if err != nil {
		return fmt.Errorf("prefix %q of cluster IPs: %w", prefix, err)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "services"
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", attributes.Name, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", attributes.Name, err)
	}
	route := &netlink.Route{LinkIndex: bridge.Index, Dst: services, Src: source, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add route to %s: %w", services, err)
	}
	return nil
}
