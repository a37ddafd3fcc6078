package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) { podnet.Main(m) }

func TestTable(t *testing.T) {
	got := table([]figure{
		{name: "`/v1/token`", unit: "requests/s", more: true, values: []float64{900, 1000, 1234}, references: []float64{1000, 1000, 1000}},
		{name: "start", unit: "ms", values: []float64{1.234}, references: []float64{2.468}},
	})
	const want = "| figure | unit | better | value | reference | ratio (lowest, median, highest) |\n" +
		"| --- | --- | --- | --- | --- | --- |\n" +
		"| `/v1/token` | requests/s | more | 1000 | 1000 | 0.90, **1.00**, 1.23 |\n" +
		"| start | ms | less | 1.23 | 2.47 | 0.50, **0.50**, 0.50 |\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-only", "("}, {"server"}, {"-time", "-1s"}} {
		var said strings.Builder
		if code := run(args, io.Discard, &said); code != 2 || !strings.Contains(said.String(), "see bench -help") {
			t.Errorf("%q: exit code %d: %s", args, code, &said)
		}
	}
}

// A run with the real binaries, too short to say anything.
func TestRun(t *testing.T) {
	podnet.Require(t)
	image := filepath.Join(t.TempDir(), "ratios.svg")
	var out, said strings.Builder
	code := run([]string{"-rounds", "1", "-time", "20ms", "-svg", image, "-only", "^(identity|joined|admission-16|size-server)$"}, &out, &said)
	rows := 2 + 4 + 2
	if podnet.RealTaps() {
		rows++
	}
	if got := strings.Count(out.String(), "**"); code != 0 || got != 2*rows {
		t.Errorf("exit code %d:\n%s%s", code, &out, &said)
	}
	drawing, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(strings.NewReader(string(drawing))); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, drawing)
		}
	}
}
