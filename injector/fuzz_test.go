package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/patchset"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

// FuzzMemory holds for whatever object there is, a unit repeated in the middle of
// it: a request allocates a bounded number of bytes, and a few for each of its own.
func FuzzMemory(f *testing.F) {
	for _, seed := range []struct{ before, unit, after string }{
		{`{"spec":{"a":[`, `{"":0},`, `0]}}`},
		{`{"metadata":{"annotations":{`, `"imds.kubevirt.io/x":"",`, `"imds.kubevirt.io/enabled":"true"}}}`},
		{`{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"containers":[`, `{"name":"a"},`, `{"name":"b"}]}}`},
		{`{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"securityContext":{"sysctls":[`, `{},`, `{}]}}}`},
		{`{"metadata":{"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"template":{"spec":{"domain":{"devices":{"interfaces":[`, `{"passt":{}},`, `{}]}}}}}}`},
		{`{"metadata":{"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"networks":[`, `{"name":"n","pod":{}},`, `{}]}}`},
		{`{"metadata":{"annotations":{"imds.kubevirt.io/enabled":"true"},"ownerReferences":[`, `{"controller":true},`, `{}]}}`},
		{`{"metadata":{"annotations":{"imds.kubevirt.io/token-audiences":"`, `\u0000,`, `"}}}`},
	} {
		for kind := range uint8(3) {
			f.Add(seed.before, seed.unit, seed.after, uint16(100), kind)
			f.Add(seed.before, seed.unit, seed.after, uint16(20_000), kind)
		}
	}
	log := slog.New(slog.DiscardHandler)
	patches, err := patchset.Open(declaredPatches, serverImage)
	if err != nil {
		f.Fatal(err)
	}
	server, reviewer := newAdmission(log, log, time.Minute), review.New(patches, "v1.0.0", log)
	kinds := []struct {
		resource string
		handler  http.Handler
	}{
		{"pods", server.handler(reviewer.Pod)},
		{"virtualmachines", server.handler(reviewer.VirtualMachine)},
		{"virtualmachineinstances", server.handler(reviewer.Instance)},
	}
	f.Fuzz(func(t *testing.T, before, unit, after string, n uint16, kind uint8) {
		if len(unit)*int(n) > 3<<20 {
			return
		}
		k := kinds[int(kind)%len(kinds)]
		body := fmt.Appendf(nil, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE","resource":{"resource":%q},"object":%s%s%s}}`,
			k.resource, before, strings.Repeat(unit, int(n)), after)
		request := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		recorder := httptest.NewRecorder()
		var was, is runtime.MemStats
		runtime.ReadMemStats(&was)
		k.handler.ServeHTTP(recorder, request)
		runtime.ReadMemStats(&is)
		if allocated, most := is.TotalAlloc-was.TotalAlloc, uint64(6<<20+6*len(body)); allocated > most {
			t.Errorf("%d bytes allocated for %d, want at most %d; answer: %.300s", allocated, len(body), most, recorder.Body)
		}
	})
}
