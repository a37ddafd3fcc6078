// Package api is the HTTP interface that the guest sees: guards, endpoints and
// problem documents.
package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/server/internal/node"
	"github.com/example/kubevirt-imds/server/internal/quote"
	"github.com/example/kubevirt-imds/server/internal/refusals"
	"github.com/example/kubevirt-imds/server/internal/token"
)

// Settings says how the API behaves.
type Settings struct {
	// Listen are the addresses of which requests must name one in Host.
	Listen []netip.AddrPort
	// RequireHeader makes /v1/ want the header "Metadata: true".
	RequireHeader bool
	// Identity is the answer of /v1/identity.
	Identity Identity
	// Agent tells why no guest is served yet. nil: imds-init wires the pod.
	Agent *node.Agent
}

// Identity is what Kubernetes calls the VM.
type Identity struct {
	Namespace          string `json:"namespace"`
	ServiceAccountName string `json:"serviceAccountName"`
	VMName             string `json:"vmName"`
	PodName            string `json:"podName"`
	VMIUID             string `json:"vmiUID,omitempty"`
	NodeName           string `json:"nodeName,omitempty"`
}

// Handler answers the guest's requests.
type Handler struct {
	guard    guard
	identity []byte // JSON, one line
	tokens   *token.Source
	agent    *node.Agent
	refused  *refusals.Log
}

// NewHandler returns the API for the tokens. What it refuses it adds to refused.
func NewHandler(settings Settings, tokens *token.Source, refused *refusals.Log) *Handler {
	return &Handler{
		guard:    guard{listen: settings.Listen, requireHeader: settings.RequireHeader},
		identity: marshalLine(settings.Identity),
		tokens:   tokens,
		agent:    settings.Agent,
		refused:  refused,
	}
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer h.recoverPanic(w, r)
	if r.ContentLength != 0 {
		abandonBody(w)
	}
	p := h.guard.check(r)
	if p == nil {
		p = h.route(w, r)
	}
	if p != nil {
		h.refuse(w, r, p)
	}
}

// abandonBody ends the connection after the answer, since a body follows that
// nobody wants. For bodyTime net/http still drops what arrives of it, or the
// kernel would reset the connection and the client might lose the answer.
func abandonBody(w http.ResponseWriter) {
	const bodyTime = 500 * time.Millisecond
	w.Header().Set("Connection", "close")
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
}

// route answers, or returns what is wrong with the request. A path has to be
// written exactly as here.
func (h *Handler) route(w http.ResponseWriter, r *http.Request) *problem {
	switch path := r.URL.EscapedPath(); path {
	case "/healthz":
		return h.health(w, r)
	case "/v1/token":
		return h.token(w, r)
	case "/v1/identity":
		return h.whoAmI(w, r)
	default:
		return noSuchPath(path)
	}
}

// azureIdentity is where each DefaultAzureCredential of Azure's SDKs looks for an
// identity of the VM. A 404 means to them that it is being set up: they ask again,
// for 15 s (npm's @azure/identity) or 100 s (azidentity for Go). A 403 with the
// word "unreachable" means that this is not Azure, and they go on to the next
// credential at once: Docker Desktop answers so. After a 400 azidentity would not
// go on if AZURE_CLIENT_ID is set. Elsewhere a 404 is right: the SDKs of AWS and
// Google give up at it, and it is all that cloudbase-init and Ignition take for no.
const azureIdentity = "/metadata/identity/"

func noSuchPath(path string) *problem {
	kind, why := notFound, ""
	if strings.HasPrefix(path, azureIdentity) {
		kind, why = otherCloud, "Azure's metadata service is unreachable from this VM, "
	}
	return kind.because("%sthere is no %s here; ask for /healthz, /v1/token or /v1/identity", why, quote.Text(path))
}

var healthy = []byte("OK")

func (h *Handler) health(w http.ResponseWriter, r *http.Request) *problem {
	if p := checkNoQuery(r); p != nil {
		return p
	}
	if _, err := h.tokens.Default(); err != nil {
		return tokenUnavailable.because("%v", err)
	}
	body := healthy
	switch reason, failed := h.agent.Lack(); {
	case failed:
		return notWired.because("%s", reason)
	case reason != "":
		// Still healthy: the bridge comes after the containers that wait for this.
		body = fmt.Appendf(nil, "%s; no guest is served yet: %s", healthy, reason)
	}
	write(w, http.StatusOK, mediaText, body)
	return nil
}

func (h *Handler) whoAmI(w http.ResponseWriter, r *http.Request) *problem {
	if p := checkNoQuery(r); p != nil {
		return p
	}
	write(w, http.StatusOK, mediaJSON, h.identity)
	return nil
}

func (h *Handler) token(w http.ResponseWriter, r *http.Request) *problem {
	audience, p := parseAudience(r)
	if p != nil {
		return p
	}
	found, p := h.findToken(audience)
	if p != nil {
		return p
	}
	media := preferredMedia(r.Header["Accept"])
	body := found.JWT
	if media == mediaJSON {
		body = found.JSON
	}
	write(w, http.StatusOK, media, body)
	return nil
}

// findToken returns the token for an audience, the default token if it is empty.
func (h *Handler) findToken(audience string) (*token.Token, *problem) {
	if audience == "" {
		found, err := h.tokens.Default()
		if err != nil {
			return nil, tokenUnavailable.because("%v", err)
		}
		return found, nil
	}
	found, err := h.tokens.ForAudience(audience)
	if unknown, ok := errors.AsType[*token.UnknownAudienceError](err); ok {
		return nil, unknownAudience.because("there is no token for the audience %s, only for %s; add others to the annotation imds.kubevirt.io/token-audiences of the VirtualMachine, with commas between them, and restart the VM",
			quote.Text(audience), listAudiences(unknown.Known))
	}
	if err != nil {
		return nil, tokenUnavailable.because("%v", err)
	}
	return found, nil
}

// listAudiences quotes the audiences, and leaves out what would make the list
// endless.
func listAudiences(audiences []string) string {
	const most = 16
	var list []string
	for _, audience := range audiences[:min(len(audiences), most)] {
		list = append(list, quote.Text(audience))
	}
	if len(audiences) > most {
		list = append(list, "...")
	}
	return strings.Join(list, ", ")
}
