package conns

import (
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// BenchmarkTrack is what a request over a kept connection takes: it begins, and the
// connection waits for the next one.
func BenchmarkTrack(b *testing.B) {
	inner, err := net.Listen("tcp4", own+":0")
	if err != nil {
		b.Fatal(err)
	}
	defer inner.Close()
	limit := NewLimit(netip.MustParseAddr(own), func(net.Addr, string) {})
	listener := limit.Listener(inner)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(guestAddr)}}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		client, err := dialer.Dial("tcp4", inner.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer client.Close()
		conn, err := listener.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		for pb.Next() {
			limit.Track(conn, http.StateActive)
			limit.Track(conn, http.StateIdle)
		}
		limit.Track(conn, http.StateClosed)
	})
}
