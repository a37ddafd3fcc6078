package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// targetFromEnvironment reads whom to serve. The error names the variable, its
// value and the remedy.
func targetFromEnvironment(getenv func(string) string) (target, error) {
	var t target
	for name, into := range map[string]*string{"IMDS_BRIDGE_NAME": &t.bridgeName, "IMDS_PREFERRED_BRIDGE": &t.preferredBridge} {
		*into = getenv(name)
		if err := validInterfaceName(*into); err != nil {
			return target{}, fmt.Errorf("%s %q %w", name, *into, err)
		}
	}
	t.exclusive = t.bridgeName != "" || getenv("IMDS_NETWORK") != ""
	redirectPort := getenv("IMDS_REDIRECT_PORT")
	port, err := parsePort(redirectPort)
	if err != nil {
		return target{}, fmt.Errorf("IMDS_REDIRECT_PORT %q %w", redirectPort, err)
	}
	t.redirectPort = port
	return t, nil
}

// lowestPort keeps the redirection off the ports at which the services of a VM
// usually are.
const lowestPort = 1024

// parsePort reads a TCP port, 0 from the empty text.
func parsePort(text string) (uint16, error) {
	if text == "" {
		return 0, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port < lowestPort {
		return 0, fmt.Errorf("is not a port from %d to 65535; give the one that imds-server listens on, or leave it empty for a VM on a bridge", lowestPort)
	}
	return uint16(port), nil
}

// maxInterfaceName is IFNAMSIZ without the final zero, in bytes.
const maxInterfaceName = 15

// validInterfaceName judges as the kernel does (dev_valid_name in
// net/core/dev.c), but allows the empty name.
func validInterfaceName(name string) error {
	switch {
	case len(name) > maxInterfaceName:
		return fmt.Errorf("is longer than %d bytes; give the name of the VM's bridge in the pod, such as k6t-eth0", maxInterfaceName)
	case name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r"):
		return errors.New("is not an interface name; give the name of the VM's bridge in the pod, such as k6t-eth0")
	}
	return nil
}
