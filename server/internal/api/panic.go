package api

import (
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
)

// recoverPanic answers a request whose handling panicked. The log gets the stack
// and what the runtime said, which hold nothing of the request.
func (h *Handler) recoverPanic(w http.ResponseWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	reason := fmt.Sprintf("panic with a %T", cause)
	if err, ok := cause.(runtime.Error); ok {
		reason = err.Error()
	}
	h.refused.Add(internalError.anchor, "remote", r.RemoteAddr, "reason", reason, "stack", string(debug.Stack()))
	p := internalError.because("imds-server failed to answer; the reason is in the log of the pod's container imds-server")
	write(w, p.Status, mediaProblem, marshalLine(p))
}
