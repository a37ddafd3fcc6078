package api

import "strings"

// withoutZone takes the zone out of a Host that names a link-local address. It is
// the name of an interface of the guest, which says nothing here, and should not
// be sent (RFC 6874 section 1); curl leaves it out, Python's http.client does not,
// neither as "%eth0" nor encoded as "%25eth0".
func withoutZone(host string) string {
	if !strings.HasPrefix(host, "[fe80:") && !strings.HasPrefix(host, "[FE80:") {
		return host
	}
	addr, rest, found := strings.Cut(host, "%")
	if !found {
		return host
	}
	zone, port, closed := strings.Cut(rest, "]")
	if !closed || zone == "" || strings.Trim(zone, zoneCharacters) != "" {
		return host
	}
	return addr + "]" + port
}

// zoneCharacters are those of a zone in a URL that need no escape (RFC 6874
// section 2).
const zoneCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
