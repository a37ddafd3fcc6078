package qemu

import (
	"net"
	"testing"
)

func TestNICOnTheCommandLine(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	for _, test := range []struct {
		name           string
		nic            NIC
		netdev, device string
	}{
		{"on a tap", NIC{MAC: mac, MTU: 9000, Tap: "tap0"},
			"tap,downscript=no,id=nic3,ifname=tap0,script=no,vhost=off",
			"virtio-net-pci,host_mtu=9000,id=nic3,mac=52:54:00:00:00:01,netdev=nic3,romfile="},
		{"on passt's socket", NIC{MAC: mac, Stream: "/run/passt.socket"},
			"stream,addr.path=/run/passt.socket,addr.type=unix,id=nic3,server=off",
			"virtio-net-pci,id=nic3,mac=52:54:00:00:00:01,netdev=nic3,romfile="},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := commaList(test.nic.netdev("nic3")); got != test.netdev {
				t.Errorf("netdev %q, want %q", got, test.netdev)
			}
			if got := commaList(test.nic.device("nic3")); got != test.device {
				t.Errorf("device %q, want %q", got, test.device)
			}
		})
	}
}
