package api

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// refuse answers with a problem document.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, p *problem) {
	switch p.kind {
	case methodNotAllowed:
		w.Header().Set("Allow", "GET, HEAD")
	case tokenUnavailable, notWired:
		w.Header().Set("Retry-After", "5") // seconds
	}
	if p.kind != tokenUnavailable && p.kind != notWired { // logged where they are found out
		h.refused.Add(p.kind.anchor, "remote", r.RemoteAddr)
	}
	write(w, p.Status, mediaProblem, marshalLine(p))
}

// write sends a whole answer.
func write(w http.ResponseWriter, status int, media string, body []byte) {
	header := w.Header()
	header["Cache-Control"] = noStore
	header["X-Content-Type-Options"] = noSniff
	values := []string{media, strconv.Itoa(len(body))}
	header["Content-Type"], header["Content-Length"] = values[:1:1], values[1:]
	w.WriteHeader(status)
	w.Write(body) // which net/http drops if the method is HEAD
}

// Header values that all answers share, so that an answer does not allocate them.
var (
	noStore = []string{"no-store"}
	noSniff = []string{"nosniff"}
)

// marshalLine returns the JSON of strings and numbers, which cannot fail, as one
// line.
func marshalLine(document any) []byte {
	line, _ := json.Marshal(document)
	return append(line, '\n')
}
