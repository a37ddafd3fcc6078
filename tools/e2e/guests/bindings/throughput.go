package bindings

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

const (
	// download is what the guest fetches each time, in bytes, and downloads how many times with and without the
	// project in turn: the best of each counts.
	download  = 16 << 20
	downloads = 5
	// leastRatio is no finer judgement than a busy machine allows: with seven times the work that its processors can
	// do, 0.55 was measured; with little else to do, 1.00.
	leastRatio = 0.25
)

// throughput compares what the guest fetches from the neighbour with and without the project in the pod.
func (sc *scene) throughput(t *suite.T, vm *stage.VM) {
	stop, err := serve(t.Context(), vm, sc.neighbour, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(download))
		io.CopyN(w, zeros{}, download)
	})
	t.Check(err)
	defer stop()
	var with, without float64
	for range downloads {
		with = max(with, sc.fetch(t, vm))
		t.Check(vm.Init.Stop())
		t.Check(removeProject(vm))
		without = max(without, sc.fetch(t, vm))
		said := len(vm.Init.Log())
		t.Check(vm.Init.Start())
		t.Check(vm.Init.AwaitLogAfter(t.Context(), said, "msg=wired"))
	}
	t.Logf("%.0f MB/s, %.0f MB/s without", with, without)
	t.Figure("%.2f", with/without)
	if with/without < leastRatio {
		t.Errorf("the guest's network is slower with the project in the pod")
	}
}

type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}

// fetch measures one download, in megabytes per second of the guest's clock.
func (sc *scene) fetch(t *suite.T, vm *stage.VM) float64 {
	said := vm.Shell(fmt.Sprintf("read a _ </proc/uptime; wget -q -O /dev/null http://%s/; read b _ </proc/uptime; echo $a $b", sc.neighbour))
	var begin, end float64
	if _, err := fmt.Sscan(strings.TrimSpace(said), &begin, &end); err != nil || end <= begin {
		t.Fatalf("no time in %q: %v", said, err)
	}
	return download / 1e6 / (end - begin)
}

// removeProject takes away all that imds-init leaves when it ends.
func removeProject(vm *stage.VM) error {
	device, err := vm.Net.Pod.Netlink().LinkByName("veth-imds")
	if err != nil {
		return err
	}
	if err := vm.Net.Pod.Netlink().LinkDel(device); err != nil {
		return err
	}
	rules, err := vm.Net.Pod.Nftables()
	if err != nil {
		return err
	}
	tables, err := rules.ListTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		if table.Name == "imds" {
			rules.DelTable(table)
		}
	}
	return rules.Flush()
}
