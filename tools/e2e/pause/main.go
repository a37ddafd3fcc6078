// Command pause is the whole content of the image that holds a pod's namespaces open: it waits to be told to
// end. It must be static: nothing else is in that image.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}
