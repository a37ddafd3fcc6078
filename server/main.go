// Command imds-server is the HTTP service that a KubeVirt guest finds at
// http://169.254.169.254 and http://[fe80::a9fe:a9fe]: its Kubernetes identity and
// a fresh ServiceAccount token. It runs as a sidecar of the virt-launcher pod,
// without a capability and as an ordinary user, and uses nothing but the standard
// library.
//
// One file or package has one job:
//
//   - internal/config reads the environment;
//   - internal/listen waits for the address and the device, and follows them;
//   - internal/node hands the pod over to the agent of its node, where that wires it;
//   - internal/conns bounds the connections;
//   - internal/api guards and answers the requests;
//   - internal/token reads the kubelet's token files;
//   - internal/probe is the client for the kubelet's exec probes.
package main

import (
	"context"
	"os"
)

// version is set by the build with -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}
