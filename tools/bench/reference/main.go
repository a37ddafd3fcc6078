// Command reference is a minimal net/http program, with which bench compares: it reads
// a request and answers the bytes of a file, over TLS where it is given a certificate.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

// usage: reference ADDRESS FILE [CERTIFICATE KEY]
func main() {
	answer, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	})
	if len(os.Args) == 5 {
		log.Fatal(http.ListenAndServeTLS(os.Args[1], os.Args[3], os.Args[4], handler))
	}
	log.Fatal(http.ListenAndServe(os.Args[1], handler))
}
