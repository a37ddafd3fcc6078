package config

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// required is the least environment that the server starts with.
var required = map[string]string{
	"IMDS_NAMESPACE": "tenant",
	"IMDS_POD_NAME":  "virt-launcher-fedora-x7k2p",
	"IMDS_VM_NAME":   "fedora",
	"IMDS_SA_NAME":   "default",
}

// lookup returns an environment of the required variables and these.
func lookup(variables map[string]string) Lookup {
	all := maps.Clone(required)
	maps.Copy(all, variables)
	return func(name string) (string, bool) {
		value, set := all[name]
		return value, set
	}
}

func TestDefaults(t *testing.T) {
	got, err := FromEnvironment(lookup(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		TokenPath: "/var/run/secrets/tokens/token",
		Identity: Identity{
			Namespace:          "tenant",
			ServiceAccountName: "default",
			VMName:             "fedora",
			PodName:            "virt-launcher-fedora-x7k2p",
		},
		Listen: Listen{
			Addrs:  []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80")},
			Device: "veth-imds",
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A missing annotation comes through the downward API as an empty variable.
func TestEmptyVariablesMeanTheDefaults(t *testing.T) {
	want, err := FromEnvironment(lookup(nil))
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromEnvironment(lookup(map[string]string{
		"IMDS_TOKEN_PATH": "", "IMDS_VMI_UID": "", "IMDS_NODE_NAME": "", "IMDS_LISTEN_ADDR": "",
		"IMDS_REDIRECT_PORT": "", "IMDS_REQUIRE_HEADER": "", "IMDS_HOP_LIMIT": "",
		"IMDS_NODE_SOCKET": "", "IMDS_BRIDGE_NAME": "", "IMDS_PREFERRED_BRIDGE": "",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestEverythingSet(t *testing.T) {
	got, err := FromEnvironment(lookup(map[string]string{
		"IMDS_TOKEN_PATH":     "/tokens/t",
		"IMDS_VMI_UID":        "0b6f5a1e",
		"IMDS_NODE_NAME":      "node1",
		"IMDS_LISTEN_ADDR":    "[fe80::a9fe:a9fe]:8080, 192.0.2.1:81",
		"IMDS_LISTEN_DEVICE":  "eth1.100",
		"IMDS_REQUIRE_HEADER": "true",
		"IMDS_HOP_LIMIT":      "1",

		"IMDS_NODE_SOCKET":      "/run/imds-node/imds.sock",
		"IMDS_BRIDGE_NAME":      "k6t-eth0",
		"IMDS_PREFERRED_BRIDGE": "k6t-eth1",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		TokenPath: "/tokens/t",
		Identity: Identity{
			Namespace:          "tenant",
			ServiceAccountName: "default",
			VMName:             "fedora",
			PodName:            "virt-launcher-fedora-x7k2p",
			VMIUID:             "0b6f5a1e",
			NodeName:           "node1",
		},
		Listen: Listen{
			Addrs:    []netip.AddrPort{netip.MustParseAddrPort("[fe80::a9fe:a9fe]:8080"), netip.MustParseAddrPort("192.0.2.1:81")},
			Device:   "eth1.100",
			HopLimit: 1,
		},
		RequireHeader: true,
		Node:          Node{Socket: "/run/imds-node/imds.sock", BridgeName: "k6t-eth0", PreferredBridge: "k6t-eth1"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if dial := got.Listen.Dial().String(); dial != "[fe80::a9fe:a9fe%eth1.100]:8080" {
		t.Errorf("a process of the pod dials %s, want the device as the zone", dial)
	}
}

// Under passt the guest asks at port 80, and the server listens at another.
func TestRedirected(t *testing.T) {
	got, err := ListenFromEnvironment(lookup(map[string]string{"IMDS_REDIRECT_PORT": "60080"}))
	if err != nil {
		t.Fatal(err)
	}
	asked, want := netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("169.254.169.254:60080")
	if served := got.Served(); !slices.Equal(served, []netip.AddrPort{asked}) {
		t.Errorf("the guest is served at %s, want %s alone: the ports of IPv6 are the VM's too", served, asked)
	}
	if got.Bind(asked) != want || got.Dial() != want {
		t.Errorf("the server binds %s, and the pod dials %s, want %s", got.Bind(asked), got.Dial(), want)
	}
}

func TestRedirectionIsOfIPv4(t *testing.T) {
	_, err := ListenFromEnvironment(lookup(map[string]string{"IMDS_REDIRECT_PORT": "60080", "IMDS_LISTEN_ADDR": "[fe80::a9fe:a9fe]:80"}))
	if err == nil || !strings.Contains(err.Error(), `IMDS_LISTEN_ADDR="[fe80::a9fe:a9fe]:80": add an IPv4 address`) {
		t.Errorf("got error %v, want one that names the variable, its value and the remedy", err)
	}
}

func TestProbeSource(t *testing.T) {
	for addr, want := range map[string]string{"169.254.169.254:80": "127.0.0.1", "[fd00:ec2::254]:80": "fd00:ec2::254"} {
		if got := (Listen{Addrs: []netip.AddrPort{netip.MustParseAddrPort(addr)}}).ProbeSource(); got.String() != want {
			t.Errorf("%s is probed from %s, want %s", addr, got, want)
		}
	}
}

func TestEmptyDeviceMeansAllDevices(t *testing.T) {
	got, err := ListenFromEnvironment(lookup(map[string]string{"IMDS_LISTEN_DEVICE": ""}))
	if err != nil {
		t.Fatal(err)
	}
	want := Listen{Addrs: []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v: no link-local address without a device", got, want)
	}
}

func TestWrongValues(t *testing.T) {
	tests := map[string]struct{ name, value, remedy string }{
		"no namespace":                 {"IMDS_NAMESPACE", "", "metadata.namespace"},
		"no pod name":                  {"IMDS_POD_NAME", "", "metadata.name"},
		"no VM name":                   {"IMDS_VM_NAME", "", "imds.kubevirt.io/vm-name"},
		"no ServiceAccount":            {"IMDS_SA_NAME", "", "spec.serviceAccountName"},
		"address without port":         {"IMDS_LISTEN_ADDR", "169.254.169.254", "and a port"},
		"address with port 0":          {"IMDS_LISTEN_ADDR", "169.254.169.254:0", "and a port"},
		"address with too big a port":  {"IMDS_LISTEN_ADDR", "169.254.169.254:65536", "and a port"},
		"host name":                    {"IMDS_LISTEN_ADDR", "localhost:80", "an IP address"},
		"IPv4 wildcard":                {"IMDS_LISTEN_ADDR", "0.0.0.0:80", "wildcard"},
		"IPv6 wildcard":                {"IMDS_LISTEN_ADDR", "[::]:80", "wildcard"},
		"multicast":                    {"IMDS_LISTEN_ADDR", "224.0.0.1:80", "one address"},
		"IPv4 in IPv6":                 {"IMDS_LISTEN_ADDR", "[::ffff:169.254.169.254]:80", "one address"},
		"an empty one of several":      {"IMDS_LISTEN_ADDR", "169.254.169.254:80,", "with commas between"},
		"a wildcard of several":        {"IMDS_LISTEN_ADDR", "169.254.169.254:80,[::]:80", "wildcard"},
		"zone":                         {"IMDS_LISTEN_ADDR", "[fe80::1%eth0]:80", "IMDS_LISTEN_DEVICE"},
		"redirection to a low port":    {"IMDS_REDIRECT_PORT", "1023", "1024 to 65535"},
		"redirection to too high one":  {"IMDS_REDIRECT_PORT", "65536", "1024 to 65535"},
		"redirection to an address":    {"IMDS_REDIRECT_PORT", "127.0.0.1:60080", "1024 to 65535"},
		"device with a slash":          {"IMDS_LISTEN_DEVICE", "../eth0", "network device"},
		"device with white space":      {"IMDS_LISTEN_DEVICE", "eth 0", "network device"},
		"device with too long a name":  {"IMDS_LISTEN_DEVICE", "veth-imds-000000", "15 bytes"},
		"device named ..":              {"IMDS_LISTEN_DEVICE", "..", "network device"},
		"header neither true or false": {"IMDS_REQUIRE_HEADER", "yes", `"true" or "false"`},
		"header in capitals":           {"IMDS_REQUIRE_HEADER", "True", `"true" or "false"`},
		"hop limit 0":                  {"IMDS_HOP_LIMIT", "0", "1 to 255"},
		"hop limit 256":                {"IMDS_HOP_LIMIT", "256", "1 to 255"},
		"hop limit not a number":       {"IMDS_HOP_LIMIT", "one", "1 to 255"},
		"hop limit of a hostile user":  {"IMDS_HOP_LIMIT", "1\nIMDS_X=\"y\"", "1 to 255"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := FromEnvironment(lookup(map[string]string{test.name: test.value}))
			if err == nil {
				t.Fatalf("%s=%q was accepted", test.name, test.value)
			}
			if !strings.HasPrefix(err.Error(), test.name+"=\"") || !strings.Contains(err.Error(), test.remedy) {
				t.Errorf("the error names not the variable, the value and the remedy %q: %v", test.remedy, err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %v", err)
			}
		})
	}
}

func TestLinkLocalAddressWantsADevice(t *testing.T) {
	_, err := ListenFromEnvironment(lookup(map[string]string{
		"IMDS_LISTEN_ADDR": "[fe80::a9fe:a9fe]:80", "IMDS_LISTEN_DEVICE": "",
	}))
	if err == nil || !strings.Contains(err.Error(), "IMDS_LISTEN_DEVICE") {
		t.Errorf("got error %v, want one that names IMDS_LISTEN_DEVICE", err)
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	_, err := FromEnvironment(lookup(map[string]string{
		"IMDS_VM_NAME": "", "IMDS_LISTEN_ADDR": "x", "IMDS_LISTEN_DEVICE": "a b", "IMDS_REQUIRE_HEADER": "x", "IMDS_HOP_LIMIT": "x",
	}))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"IMDS_VM_NAME", "IMDS_LISTEN_ADDR", "IMDS_LISTEN_DEVICE", "IMDS_REQUIRE_HEADER", "IMDS_HOP_LIMIT"} {
		if !strings.Contains(err.Error(), name+"=") {
			t.Errorf("%s is not in the error: %v", name, err)
		}
	}
}
