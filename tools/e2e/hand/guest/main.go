// Command guest runs inside the tests' guest and does what a test tells it by the virtio serial port hand.Port.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

func main() {
	if err := run("/sys/class/virtio-ports", "/dev"); err != nil {
		fmt.Fprintln(os.Stderr, "hand:", err)
		os.Exit(1)
	}
}

// run serves the port until it is gone.
func run(ports, devices string) error {
	device, err := findPort(ports)
	if err != nil {
		return err
	}
	port, err := os.OpenFile(filepath.Join(devices, device), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	return hand.Serve(port, hand.Operations{
		Run: runCommand, Get: get, NAT: nat, Ask: ask, Send: send, Sniff: sniff, Hold: hold, HalfOpen: halfOpen,
	})
}

// findPort finds the device of the port by its name.
func findPort(folder string) (device string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		name, err := os.ReadFile(filepath.Join(folder, entry.Name(), "name"))
		if err == nil && strings.TrimSpace(string(name)) == hand.Port {
			return entry.Name(), nil
		}
	}
	return "", fmt.Errorf("no port in %s has the name %s", folder, hand.Port)
}
