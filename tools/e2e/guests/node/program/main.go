// Command program makes a VM's pod, in bridge binding, with a guest and a neighbour, on the node that it runs on:
// itself a guest, with a kernel and a clock of its own.
//
// When all is there it makes the links pod, guest and neighbour to the network namespaces in the folder that it is
// given, and then waits for ever. The neighbour answers on port 80: that is the VM's own network.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%q: want the folder for the links to the namespaces", args)
	}
	pod, err := podnet.New(podnet.Options{Binding: podnet.Bridge})
	if err != nil {
		return err
	}
	defer pod.Close()
	// What the container runtime does at the word of the pod's patch: there is none on this node.
	if err := pod.Pod.Sysctl("net.ipv4.ip_unprivileged_port_start", "0"); err != nil {
		return err
	}
	if err := pod.Wire(); err != nil {
		return err
	}
	if err := pod.StartGuest(); err != nil {
		return err
	}
	listener, err := pod.Neighbour.Listen(ctx, "tcp", ":80")
	if err != nil {
		return err
	}
	for name, namespace := range map[string]*podnet.Namespace{"neighbour": pod.Neighbour, "guest": pod.Guest, "pod": pod.Pod} {
		if err := os.Symlink(namespace.Path(), filepath.Join(args[0], name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(args[0], "ready"), nil, 0o644); err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "the neighbour")
	}))
}
