// Command pause is the whole content of the image that holds a pod's namespaces open: it waits to be told to
// end. It must be static: nothing else is in that image. Given an address to listen on, it serves the container's files.
package main

import (
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	if len(os.Args) > 1 {
		go func() { log.Fatal(http.ListenAndServe(os.Args[1], http.FileServer(http.Dir("/")))) }()
	}
	<-end
}
