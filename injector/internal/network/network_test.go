package network

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// passtVM is a spec whose one interface is bound by passt and lists these ports.
func passtVM(ports ...int) jsontree.Object {
	list := []any{}
	for _, port := range ports {
		list = append(list, jsontree.Object{"port": json.Number(strconv.Itoa(port))})
	}
	return jsontree.Object{
		"domain": jsontree.Object{"devices": jsontree.Object{"interfaces": []any{
			jsontree.Object{"name": "default", "passtBinding": jsontree.Object{}, "ports": list},
		}}},
		"networks": []any{jsontree.Object{"name": "default", "pod": jsontree.Object{}}},
	}
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
		want     uint16
	}{
		{"no ports, which are all", nil, 60080},
		{"other ports", []int{80, 60081}, 60080},
		{"the first", []int{60080}, 60081},
		{"several, not in order", []int{60082, 60080, 60081}, 60083},
		{"all but the last", span(60080, 60998), 60999},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			way := WayOf(passtVM(c.ports...), nil)
			if way.RedirectPort != c.want || way.Problems != nil {
				t.Errorf("got %+v, want port %d", way, c.want)
			}
		})
	}
}

func TestVMThatListsEveryPortIsRefused(t *testing.T) {
	way := WayOf(passtVM(span(60080, 60999)...), nil)
	if way.RedirectPort != 0 || len(way.Problems) != 1 || !strings.Contains(way.Problems[0], "leave out one from 60080 to 60999") {
		t.Errorf("got %+v", way)
	}
}
