package links

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// conf is the IPv4 configuration of the device that makes it the endpoint.
// The numbers are the IPV4_DEVCONF_* of include/uapi/linux/ip.h.
var conf = []struct {
	name   string
	number int
	value  uint32
}{
	// In bridge binding the guest's own address is local to the pod too, on
	// a dummy; the kernel drops a packet from a local address otherwise.
	{"accept_local", 23, 1},
	// A question is accepted whichever way its sender would be reached.
	{"rp_filter", 8, 2},
	// Only the address of the endpoint is answered for: the guest's ARP for
	// its gateway, which is the pod too in masquerade, is not our business.
	{"arp_ignore", 19, 1},
}

// ensureConf reads the configuration in /proc/sys and sets it by netlink:
// /proc/sys is read-only in a container without privileges, and RTM_SETLINK
// takes the same values for NET_ADMIN (inet_set_link_af in
// net/ipv4/devinet.c).
func ensureConf(device netlink.Link) (changed bool, err error) {
	right, err := confIsRight()
	if err != nil || right {
		return false, err
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(device.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	values := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(iflaInetConf|unix.NLA_F_NESTED, nil)
	for _, c := range conf {
		values.AddRtAttr(c.number, nl.Uint32Attr(c.value))
	}
	req.AddData(spec)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return false, fmt.Errorf("set the IPv4 configuration of %s: %w", wiring.Device, err)
	}
	return true, nil
}

// iflaInetConf is IFLA_INET_CONF of include/uapi/linux/if_link.h.
const iflaInetConf = 1

func confIsRight() (bool, error) {
	for _, c := range conf {
		text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + wiring.Device + "/" + c.name)
		if err != nil {
			return false, fmt.Errorf("read the IPv4 configuration of %s: %w", wiring.Device, err)
		}
		if strings.TrimSpace(string(text)) != strconv.FormatUint(uint64(c.value), 10) {
			return false, nil
		}
	}
	return true, nil
}
