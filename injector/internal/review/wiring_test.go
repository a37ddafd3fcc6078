package review

import (
	"fmt"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// passtVM asks for IMDS, and its one interface is bound by passt and lists these
// ports.
func passtVM(t *testing.T, ports ...int) subject {
	t.Helper()
	var list []string
	for _, port := range ports {
		list = append(list, fmt.Sprintf(`{"port":%d}`, port))
	}
	spec, err := jsontree.Parse([]byte(`{"domain":{"devices":{"interfaces":[{"name":"default","passtBinding":{},"ports":[` +
		strings.Join(list, ",") + `]}]}},"networks":[{"name":"default","pod":{}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return newSubject(annotations{annotation.Enabled: {Text: "true"}}, spec)
}

func span(first, last int) (ports []int) {
	for port := first; port <= last; port++ {
		ports = append(ports, port)
	}
	return ports
}

func TestRedirectPortIsTheFirstThatTheVMDoesNotList(t *testing.T) {
	for _, c := range []struct {
		scenario string
		ports    []int
		want     int
	}{
		{"no ports, which are all", nil, 60080},
		{"other ports", []int{80, 60081}, 60080},
		{"the first", []int{60080}, 60081},
		{"several, not in order", []int{60082, 60080, 60081}, 60083},
		{"all but the last", span(60080, 60998), 60999},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			way := passtVM(t, c.ports...).wiring()
			if way.redirectPort != c.want || way.problems != nil {
				t.Errorf("got %+v, want port %d", way, c.want)
			}
		})
	}
}

func TestVMThatListsEveryPortIsRefused(t *testing.T) {
	way := passtVM(t, span(60080, 60999)...).wiring()
	if way.redirectPort != 0 || len(way.problems) != 1 || !strings.Contains(way.problems[0], "remove one from 60080 to 60999") {
		t.Errorf("got %+v", way)
	}
}
