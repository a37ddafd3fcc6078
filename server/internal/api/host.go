package api

import (
	"net/netip"
	"strconv"
	"strings"
)

// parseHost returns the address and the port, 80 unless written, that a Host
// names. It is false for a name and for all that is no IP address to every client:
// "169.254.169.254.", "2852039166", "0xa9fea9fe" and the like are one to some
// resolvers, a name to others, and a way around a filter to an attacker.
//
// An IPv6 address may be written in any way that RFC 4291 allows (Java writes
// "[fe80:0:0:0:0:0:a9fe:a9fe]"), and without brackets (aiohttp 3.8).
func parseHost(host string) (netip.AddrPort, bool) {
	literal, port := splitPort(host)
	text, bracketed := strings.CutPrefix(literal, "[")
	if bracketed {
		var closed bool
		if text, closed = strings.CutSuffix(text, "]"); !closed {
			return netip.AddrPort{}, false
		}
	}
	text, zone, zoned := strings.Cut(text, "%")
	address, err := netip.ParseAddr(text)
	if err != nil || bracketed && address.Is4() || zoned && !isZone(address, zone) {
		return netip.AddrPort{}, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(address, uint16(number)), true
}

// splitPort splits a Host into an address and a port. The colon of the port comes
// after the bracket and after the zone; without these, several colons are those
// of an IPv6 address.
func splitPort(host string) (literal, port string) {
	end := strings.LastIndexAny(host, "]%") + 1
	colon := strings.IndexByte(host[end:], ':')
	if colon < 0 || end == 0 && strings.Count(host, ":") > 1 {
		return host, "80"
	}
	return host[:end+colon], host[end+colon+1:]
}

// isZone tells whether an address may have this zone: the name of an interface of
// the guest, which says nothing here, and should not be sent (RFC 6874 section 1).
// curl leaves it out, Python's http.client does not, neither as "%eth0" nor
// encoded as "%25eth0".
func isZone(address netip.Addr, zone string) bool {
	return address.Is6() && address.IsLinkLocalUnicast() && zone != "" && strings.Trim(zone, zoneCharacters) == ""
}

// zoneCharacters are those of a zone in a URL that need no escape (RFC 6874
// section 2).
const zoneCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
