package api

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/token"
	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// BenchmarkServeHTTP is what an answer takes beside net/http. tools/bench compares the
// whole program with a minimal one.
func BenchmarkServeHTTP(b *testing.B) {
	volume := tokentest.NewVolume(b, map[string]string{"token": freshJWT(apiServer)})
	log := slog.New(slog.DiscardHandler)
	handler := NewHandler(Settings{Listen: []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80")}, Identity: testIdentity},
		token.NewSource(volume.TokenPath(), inAnHour, log), refusals.NewLog(log, time.Now))
	for _, path := range []string{"/v1/token", "/v1/identity"} {
		b.Run(path[len("/v1/"):], func(b *testing.B) {
			request := httptest.NewRequest(http.MethodGet, path, nil)
			request.Host = "169.254.169.254"
			request.Header = http.Header{"User-Agent": {"curl/8.14.1"}, "Accept": {"*/*"}}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := &discard{header: http.Header{}}
				for pb.Next() {
					clear(w.header)
					handler.ServeHTTP(w, request)
				}
				if w.status != 0 && w.status != http.StatusOK {
					b.Error(w.status)
				}
			})
		})
	}
}

// discard takes an answer.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
