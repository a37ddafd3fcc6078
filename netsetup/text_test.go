package main

import (
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/tools/podnet"
)

var update = flag.Bool("update", false, "write testdata/*.nft and testdata/metrics.txt anew")

// The rules of each kind of wiring as nft(8) shows them, to be read in a review. They
// are the same whether imds-init is in the pod or the agent of its node.
func TestRulesAsText(t *testing.T) {
	requireProgram(t, "nft")
	requireIPv6(t)
	version, err := exec.Command("nft", "--version").Output()
	must(t, err)
	for _, c := range []struct {
		file      string
		options   podnet.Options
		secondary bool
		env       []string
		says      string
	}{
		{"waiting", podnet.Options{}, false, nil, "endpoint ready"},
		{"masquerade", podnet.Options{Binding: podnet.Masquerade}, false, nil, "msg=wired"},
		{"bridge", podnet.Options{Binding: podnet.Bridge}, false, nil, "msg=wired"},
		{"two-networks", podnet.Options{Binding: podnet.Bridge}, true, nil, "led=" + secondTap},
		{"passt", podnet.Options{Binding: podnet.Passt}, false, []string{redirectTo}, "msg=wired"},
	} {
		test := func(t *testing.T, startOn func(*testing.T, *podnet.Pod) logLines) {
			pod := newPod(t, c.options)
			p := startOn(t, pod)
			if c.says != "endpoint ready" && c.env == nil {
				must(t, pod.Wire())
			}
			if c.secondary {
				must(t, pod.AddSecondaryBridge(secondInterface))
			}
			p.waitFor(t, c.says)
			compareText(t, filepath.Join("testdata", c.file+".nft"), ourTables(t, pod), string(version))
		}
		t.Run(c.file, func(t *testing.T) {
			test(t, func(t *testing.T, pod *podnet.Pod) logLines { return start(t, pod, onThisKernel, c.env...).logLines })
		})
		t.Run(c.file+" by the agent", func(t *testing.T) {
			test(t, func(t *testing.T, pod *podnet.Pod) logLines {
				n := runningNode(t)
				message := honest
				if c.env != nil {
					message = strings.Replace(honest, `"redirectPort":0`, `"redirectPort":60080`, 1)
				}
				speak(t, n.addPod(t, "uid"), func(conn *net.UnixConn) error { return say(conn, message, pod.Pod.FD()) })
				return n.logLines
			})
		})
	}
}

// ourTables are the tables of ours without counts, one after the other. What a guest has
// made the kernel remember is left out, and so is what another kernel numbers otherwise.
func ourTables(t *testing.T, pod *podnet.Pod) string {
	t.Helper()
	var text strings.Builder
	for _, family := range []string{"netdev", "bridge", "arp", "ip", "ip6"} {
		if tables := inPod(t, pod, "nft", "list tables "+family); strings.Contains(tables, "imds") {
			text.WriteString(inPod(t, pod, "nft", "-s", "list table "+family+" imds"))
		}
	}
	var lines []string
	remembered := false
	for _, line := range strings.SplitAfter(text.String(), "\n") {
		remembered = remembered || strings.Contains(line, "elements = {")
		if !remembered {
			lines = append(lines, line)
		}
		remembered = remembered && !strings.Contains(line, "}")
	}
	return strings.Join(lines, "")
}

func compareText(t *testing.T, file, have, version string) {
	t.Helper()
	if *update {
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte(have), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if diff := cmp.Diff(string(want), have); diff != "" {
		t.Errorf("%s (by %s; go test ./netsetup -run TestRulesAsText -update writes it anew):\n%s", file, strings.TrimSpace(version), diff)
	}
}
