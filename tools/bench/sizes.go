package main

import (
	"compress/gzip"
	"os"
)

func sizeComparisons() []comparison {
	size := func(short, name string, programs func(binaries) []string) comparison {
		return comparison{
			name:    "size-" + short,
			figures: []figure{{name: "size of " + name, unit: "MB"}, {name: "size of " + name + ", gzip", unit: "MB"}},
			once:    true,
			prepare: func(b *bench) (ours, reference measurement, err error) {
				return sizesOf(programs(b.binaries)), sizesOf([]string{b.binaries.reference}), nil
			},
		}
	}
	return []comparison{
		size("server", "imds-server", func(b binaries) []string { return []string{b.server} }),
		size("init", "imds-init", func(b binaries) []string { return []string{b.init} }),
		// An image holds the programs and nothing else.
		size("server-image", "the server image", func(b binaries) []string { return []string{b.server, b.init} }),
		size("webhook-image", "the webhook image", func(b binaries) []string { return []string{b.webhook} }),
	}
}

// sizesOf measures files in all, as they are and as a registry sends them.
func sizesOf(files []string) measurement {
	return func() ([]float64, error) {
		var plain, compressed counter
		for _, name := range files {
			content, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			plain.Write(content)
			packed := gzip.NewWriter(&compressed)
			packed.Write(content)
			packed.Close()
		}
		return []float64{float64(plain) / 1e6, float64(compressed) / 1e6}, nil
	}
}

// counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
