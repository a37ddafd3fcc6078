package guest

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/netns"
)

// Names and addresses that KubeVirt gives to the pod network of a VM in masquerade binding.
const (
	bridgeName    = "k6t-eth0"
	bridgeAddress = "10.0.2.1/24"
	tapName       = "tap0"
	guestAddress  = "10.0.2.2/24"
	gateway       = "10.0.2.1"
	mtu           = 1500
)

var (
	bridgeMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
	// guestMAC is the same for the life of a VMI.
	guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
)

//go:embed masquerade.nft
var masquerade []byte

// Wire does to a pod's network what virt-handler does for a VM in masquerade binding: bridge, tap and NAT
// (KubeVirt: pkg/network/setup and pkg/network/driver). Its nft must be in PATH or where Debian has it.
func Wire(pod *netns.Namespace) error {
	if err := pod.Do(addBridge); err != nil {
		return err
	}
	if err := pod.Do(addTap); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"ip_forward":                             "1",
		"conf/" + bridgeName + "/route_localnet": "1",
	} {
		err := pod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0) })
		if err != nil {
			return err
		}
	}
	return translate(pod)
}

func addBridge() error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = bridgeName, mtu, bridgeMAC
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", bridgeName, err)
	}
	address, err := netlink.ParseAddr(bridgeAddress)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(bridge, address); err != nil {
		return fmt.Errorf("give %s the address %s: %w", bridgeName, address, err)
	}
	return netlink.LinkSetUp(bridge)
}

// addTap makes the tap, which stays without a carrier until somebody opens it, a port of the bridge.
func addTap() error {
	file, err := openTap(tapName)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(file.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep tap %s: %w", tapName, err)
	}
	tap, err := netlink.LinkByName(tapName)
	if err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(tap, bridge); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", tapName, bridgeName, err)
	}
	return netlink.LinkSetUp(tap)
}

func translate(pod *netns.Namespace) error {
	path, err := exec.LookPath("nft")
	if err != nil {
		path = "/usr/sbin/nft"
	}
	command := exec.Command(path, "-f", "-")
	command.Stdin = bytes.NewReader(masquerade)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	if err := pod.Run(command); err != nil {
		return fmt.Errorf("nft: %w: %s", err, complaint.Bytes())
	}
	return nil
}

// openTap opens a tap in the calling thread's namespace, and makes it if it is not there. Each read and write
// is one frame.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (the kernel's module is tun): %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
