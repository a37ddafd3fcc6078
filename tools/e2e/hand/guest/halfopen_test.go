package main

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// A checksum over data that holds its own checksum is zero (RFC 1071 section 1).
func TestFirstPacketOfAConnection(t *testing.T) {
	packet := synPacket(netip.MustParseAddrPort("10.0.2.77:1024"), netip.MustParseAddrPort("169.254.169.254:80"))
	if sum := checksum(packet[:20]); sum != 0 {
		t.Errorf("the header's checksum is off by %#04x", sum)
	}
	pseudo := append(append([]byte{}, packet[12:20]...), 0, 6, 0, 20)
	if sum := checksum(append(pseudo, packet[20:]...)); sum != 0 {
		t.Errorf("the segment's checksum is off by %#04x", sum)
	}
	const addressesAndPorts = "0a00024da9fea9fe04000050"
	if got := hex.EncodeToString(packet[12:24]); got != addressesAndPorts {
		t.Errorf("addresses and ports %s, want %s", got, addressesAndPorts)
	}
	if packet[33] != flagSYN {
		t.Errorf("flags %#02x, want SYN alone", packet[33])
	}
}

// RFC 1071 section 3 has the example.
func TestChecksum(t *testing.T) {
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum %#04x, want %#04x", got, ^uint16(0xddf2))
	}
}
