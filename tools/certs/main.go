// Command certs makes the CA, the certificate and the key of the webhook for
// overlays/manual: for clusters where nothing issues certificates.
package main

import (
	"os"
	"time"
)

func main() {
	os.Exit(run(os.Args[1:], time.Now(), os.Stdout, os.Stderr))
}
