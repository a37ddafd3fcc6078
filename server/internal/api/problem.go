package api

import (
	"fmt"
	"net/http"
)

// documentation is the page that explains the kinds of problem, server/README.md.
const documentation = "https://github.com/example/kubevirt-imds/blob/main/server/README.md"

// mediaProblem is the media type of a problem document.
const mediaProblem = "application/problem+json"

// kind is a kind of problem. The anchor names its explanation in the
// documentation, and the kind in the log.
type kind struct {
	anchor string
	status int
	title  string
}

// The kinds of problem, in the order in which a request can meet them.
var (
	methodNotAllowed = kind{"method-not-allowed", http.StatusMethodNotAllowed, "Method not allowed"}
	forwardedRequest = kind{"forwarded-request", http.StatusForbidden, "Forwarded request"}
	foreignHost      = kind{"foreign-host", http.StatusForbidden, "Foreign host"}
	browserRequest   = kind{"browser-request", http.StatusForbidden, "Request of a browser"}
	headerRequired   = kind{"header-required", http.StatusForbidden, "Header required"}
	notFound         = kind{"not-found", http.StatusNotFound, "Not found"}
	otherCloud       = kind{"other-cloud", http.StatusForbidden, "Path of another cloud"}
	invalidQuery     = kind{"invalid-query", http.StatusBadRequest, "Invalid query"}
	unknownAudience  = kind{"unknown-audience", http.StatusNotFound, "Unknown audience"}
	tokenUnavailable = kind{"token-unavailable", http.StatusServiceUnavailable, "Token unavailable"}
	notWired         = kind{"not-wired", http.StatusServiceUnavailable, "Not wired"}
	internalError    = kind{"internal-error", http.StatusInternalServerError, "Internal error"}
)

// problem is a problem document of RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail says what is wrong with this request and what to do.
	Detail string `json:"detail"`

	kind kind
}

// because returns a problem with the detail. What a request brought goes into it
// through quote.Text.
func (k kind) because(format string, args ...any) *problem {
	return &problem{
		Type:   documentation + "#" + k.anchor,
		Title:  k.title,
		Status: k.status,
		Detail: fmt.Sprintf(format, args...),
		kind:   k,
	}
}
