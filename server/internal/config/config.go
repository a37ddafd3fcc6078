// Package config reads the settings of imds-server from its environment.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// Defaults of the variables that have one.
const (
	DefaultTokenPath    = "/var/run/secrets/tokens/token"
	DefaultListenAddr   = "169.254.169.254:80"
	DefaultListenDevice = "veth-imds"
)

// Lookup finds a variable of the environment, as os.LookupEnv does.
type Lookup func(name string) (value string, set bool)

// Config holds all settings of the server.
type Config struct {
	// TokenPath is the file of the default token.
	TokenPath string
	// Identity is what the guest is told about itself.
	Identity Identity
	// Listen is where the guest finds the server.
	Listen Listen
	// RequireHeader makes /v1/ want the header "Metadata: true".
	RequireHeader bool
}

// Identity is what Kubernetes calls the VM. VMIUID and NodeName may be empty.
type Identity struct {
	Namespace          string
	ServiceAccountName string
	VMName             string
	PodName            string
	VMIUID             string
	NodeName           string
}

// Listen is the address and what narrows it.
type Listen struct {
	// Addr is what the guest asks: one address of the pod, never a wildcard.
	Addr netip.AddrPort
	// RedirectPort is the port to listen on in place of Addr's, to which imds-init
	// redirects the guest: under passt Addr's belongs to the VM. 0 means Addr's.
	RedirectPort uint16
	// Device is the network device to listen on; empty means all of them.
	Device string
	// HopLimit is the TTL of the answers, 1 to 255; 0 means the kernel's default.
	HopLimit int
}

// Bind returns the address to listen on.
func (l Listen) Bind() netip.AddrPort {
	if l.RedirectPort != 0 {
		return netip.AddrPortFrom(l.Addr.Addr(), l.RedirectPort)
	}
	return l.Addr
}

// Dial returns the address under which a process of the pod reaches the server:
// Bind, and for a link-local IPv6 address the device as its zone.
func (l Listen) Dial() netip.AddrPort {
	bind := l.Bind()
	if l.isLinkLocal() {
		return netip.AddrPortFrom(bind.Addr().WithZone(l.Device), bind.Port())
	}
	return bind
}

// ProbeSource returns the address that the pod's probes come from, and the guest
// never: 127.0.0.1, answers to which imds-init keeps in the pod. With IPv6 it is
// the address itself, which is not enough for IPv4, since passt asks from there.
func (l Listen) ProbeSource() netip.Addr {
	if l.Addr.Addr().Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return l.Addr.Addr()
}

// isLinkLocal tells whether the address says nothing without a device. IPv4 has
// no such addresses: 169.254.169.254 is routed like any other.
func (l Listen) isLinkLocal() bool {
	return l.Addr.Addr().Is6() && l.Addr.Addr().IsLinkLocalUnicast()
}

// FromEnvironment reads all settings. The error names every variable that is
// wrong, each in a line with its value and the remedy.
func FromEnvironment(lookup Lookup) (Config, error) {
	e := environment{lookup: lookup}
	config := Config{
		TokenPath: e.text("IMDS_TOKEN_PATH", DefaultTokenPath),
		Identity: Identity{
			Namespace:          e.required("IMDS_NAMESPACE", "the namespace of the pod (downward API: metadata.namespace)"),
			ServiceAccountName: e.required("IMDS_SA_NAME", "the name of the pod's ServiceAccount (downward API: spec.serviceAccountName)"),
			VMName:             e.required("IMDS_VM_NAME", "the name of the VM (downward API: metadata.annotations['imds.kubevirt.io/vm-name'])"),
			PodName:            e.required("IMDS_POD_NAME", "the name of the pod (downward API: metadata.name)"),
			VMIUID:             e.text("IMDS_VMI_UID", ""),
			NodeName:           e.text("IMDS_NODE_NAME", ""),
		},
		Listen:        e.listen(),
		RequireHeader: e.boolean("IMDS_REQUIRE_HEADER"),
	}
	return config, errors.Join(e.problems...)
}

// ListenFromEnvironment reads the settings of the listener alone, which is all
// that a probe needs. The error is like FromEnvironment's.
func ListenFromEnvironment(lookup Lookup) (Listen, error) {
	e := environment{lookup: lookup}
	listen := e.listen()
	return listen, errors.Join(e.problems...)
}

// environment reads variables and collects what is wrong with them.
type environment struct {
	lookup   Lookup
	problems []error
}

func (e *environment) wrong(name, value, remedy string) {
	e.problems = append(e.problems, fmt.Errorf("%s=%s: %s", name, quote.Text(value), remedy))
}

// text returns the value of a variable, or fallback if it is empty or not set.
func (e *environment) text(name, fallback string) string {
	if value, _ := e.lookup(name); value != "" {
		return value
	}
	return fallback
}

func (e *environment) required(name, meaning string) string {
	value := e.text(name, "")
	if value == "" {
		e.wrong(name, value, "it is required: set it to "+meaning)
	}
	return value
}

func (e *environment) boolean(name string) bool {
	value := e.text(name, "false")
	if value != "true" && value != "false" {
		e.wrong(name, value, `set it to "true" or "false", or leave it empty for "false"`)
	}
	return value == "true"
}

func (e *environment) listen() Listen {
	listen := Listen{
		Addr:         e.listenAddr("IMDS_LISTEN_ADDR"),
		RedirectPort: e.redirectPort("IMDS_REDIRECT_PORT"),
		Device:       e.device("IMDS_LISTEN_DEVICE"),
		HopLimit:     e.hopLimit("IMDS_HOP_LIMIT"),
	}
	if listen.isLinkLocal() && listen.Device == "" {
		e.wrong("IMDS_LISTEN_DEVICE", "", "set it to the device of the link-local address in IMDS_LISTEN_ADDR")
	}
	return listen
}

func (e *environment) listenAddr(name string) netip.AddrPort {
	value := e.text(name, DefaultListenAddr)
	addr, err := netip.ParseAddrPort(value)
	ip := addr.Addr()
	switch {
	case err != nil || addr.Port() == 0:
		e.wrong(name, value, "set it to an IP address and a port, such as 169.254.169.254:80 or [fd00:ec2::254]:80")
	case ip.Zone() != "":
		e.wrong(name, value, "leave out the zone and name the device in IMDS_LISTEN_DEVICE")
	case ip.IsUnspecified() || ip.IsMulticast() || ip.Is4In6():
		e.wrong(name, value, "set it to one address of the pod: every network of the pod could reach a wildcard")
	}
	return addr
}

func (e *environment) redirectPort(name string) uint16 {
	value := e.text(name, "")
	if value == "" {
		return 0
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port < 1024 {
		e.wrong(name, value, "set it to a port from 1024 to 65535, the one that imds-init redirects the guest to, or leave it empty where the guest comes by a bridge")
	}
	return uint16(port)
}

// device tells a variable that is not set, which has a default, from an empty
// one, which means all devices.
func (e *environment) device(name string) string {
	value, set := e.lookup(name)
	if !set {
		return DefaultListenDevice
	}
	// IFNAMSIZ of linux/if.h and dev_valid_name of net/core/dev.c.
	const maxLength = 15
	if len(value) > maxLength || value == "." || value == ".." || strings.ContainsAny(value, "/: \t\n\v\f\r") {
		e.wrong(name, value, "set it to the name of a network device (at most 15 bytes, no slash, colon or white space), or empty for all devices")
	}
	return value
}

func (e *environment) hopLimit(name string) int {
	value := e.text(name, "")
	if value == "" {
		return 0
	}
	limit, err := strconv.Atoi(value)
	if err != nil || limit < 1 || limit > 255 {
		e.wrong(name, value, "set it to a number from 1 to 255, or leave it empty for the kernel's default")
	}
	return limit
}
