package vmtest

import (
	"encoding/hex"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestFramesOfOursOnTheUplink(t *testing.T) {
	const (
		guest   = "525400123456"
		gateway = "0a580af40101"
		ipv4    = "4500001400000000400600000af40105"
		// From no address to the group ff02::1:fffe:a9fe: ICMPv6 of type 135, up to the target.
		solicitation = "86dd6000000000183aff" + "00000000000000000000000000000000" + "ff0200000000000000000001fffea9fe" + "8700000000000000"
	)
	for _, test := range []struct {
		name, frame string
		want        bool
	}{
		{"a packet to somebody", gateway + guest + "0800" + ipv4 + "08080808", false},
		{"a packet to the endpoint's address", gateway + guest + "0800" + ipv4 + "a9fea9fe", true},
		{"the same behind a priority tag", gateway + guest + "8100e0000800" + ipv4 + "a9fea9fe", true},
		{"the same in a VLAN, which is another network", gateway + guest + "8100000a0800" + ipv4 + "a9fea9fe", false},
		{"a frame to the endpoint's MAC in a VLAN", "0200a9fea9fe" + guest + "8100000a0800" + ipv4 + "08080808", true},
		{"a frame to the endpoint's MAC", "0200a9fea9fe" + guest + "0800" + ipv4 + "08080808", true},
		{"a frame from the bridge port's MAC", gateway + "fefffffffffe" + "86dd60", true},
		{"an ARP answer that names the endpoint's MAC", guest + gateway + "08060001080006040002" + "0200a9fea9fe" + "08080808" + guest + "0af40105", true},
		{"a solicitation for the IPv6 endpoint", "3333fffea9fe" + guest + solicitation + "fe8000000000000000000000a9fea9fe", true},
		{"one for another address of the same group", "3333fffea9fe" + guest + solicitation + "fe800000000000000000a9fffefea9fe", false},
		{"an advertisement of the IPv6 endpoint", guest + gateway + "86dd60000000" + "fe80000000000000" + "00000000a9fea9fe", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := hex.DecodeString(test.frame)
			if err != nil {
				t.Fatal(err)
			}
			if got := IsOurs(podnet.Frame{Data: data}); got != test.want {
				t.Errorf("ours: %v, want %v", got, test.want)
			}
		})
	}
}
