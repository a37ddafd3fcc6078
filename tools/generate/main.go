// Command generate makes the manifests that must agree with the binaries, and the
// golden renders of the overlays, from one source of truth:
// internal/contract and the templates of internal/manifest. It is a KRM function
// too.
package main

import (
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
