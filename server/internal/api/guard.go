package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// guard refuses requests that no program in the guest means to send, but that a
// proxy, a web page or a trick can make it send. Every request passes it, to
// whatever path.
type guard struct {
	// listen are the addresses and ports of this server.
	listen []netip.AddrPort
	// requireHeader makes /v1/ want the header "Metadata: true".
	requireHeader bool
}

// check returns the first reason to refuse a request, or nil.
func (g guard) check(r *http.Request) *problem {
	checks := [...]func(*http.Request) *problem{
		g.checkMethod,
		g.checkForwarded,
		g.checkScheme,
		g.checkHost,
		g.checkBrowser,
		g.checkHeader,
	}
	for _, check := range checks {
		if p := check(r); p != nil {
			return p
		}
	}
	return nil
}

// checkMethod refuses methods that change something: nothing can be changed.
func (g guard) checkMethod(r *http.Request) *problem {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	return methodNotAllowed.because("the method %s is not served, use GET or HEAD", quote.Text(r.Method))
}

// checkForwarded refuses what came through a proxy: somebody else may ask.
func (g guard) checkForwarded(r *http.Request) *problem {
	for name := range r.Header {
		if isProxyHeader(name) {
			return forwardedRequest.because("the header %s says that a proxy sent this request; ask from inside the VM and without a proxy (curl --noproxy '*')", quote.Text(name))
		}
	}
	return nil
}

// isProxyHeader tells whether a header is one that proxies add and that a client
// adds for nobody but a proxy. Those of RFC 9110 (Via), 7239 (Forwarded) and 8586
// (CDN-Loop) come first, then those of common programs and networks:
// X-Forwarded-Host, X-Original-URL, True-Client-IP, CF-Connecting-IP and so on.
//
// Some proxies write an underscore for a hyphen, and some leave a hyphen out.
func isProxyHeader(name string) bool {
	name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	switch name {
	case "Via", "Forwarded", "Cdn-Loop", "Forwarded-For", "X-Real-Ip", "X-Rewrite-Url", "Proxy-Connection":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded") ||
		strings.HasPrefix(name, "X-Original-") ||
		strings.HasSuffix(name, "Client-Ip") || strings.HasSuffix(name, "-Clientip") ||
		strings.HasSuffix(name, "-Connecting-Ip")
}

// checkScheme refuses the URL of another service, in the form that a client sends
// to a proxy.
func (g guard) checkScheme(r *http.Request) *problem {
	if r.URL.Scheme == "" || r.URL.Scheme == "http" {
		return nil
	}
	return foreignHost.because("the scheme %s is not served; ask for %s", quote.Text(r.URL.Scheme), g.urls())
}

// checkHost refuses names that somebody pointed at this address: a web page in
// the guest's browser could read the answer (DNS rebinding). HTTP/1.0 knows no
// Host.
func (g guard) checkHost(r *http.Request) *problem {
	if r.Host == "" && !r.ProtoAtLeast(1, 1) {
		return nil
	}
	if named, ok := parseHost(r.Host); ok && slices.Contains(g.listen, named) {
		return nil
	}
	return foreignHost.because("the host %s is not this service; ask for %s", quote.Text(r.Host), g.urls())
}

// urls lists the URLs of this server.
func (g guard) urls() string {
	var urls []string
	for _, addr := range g.listen {
		urls = append(urls, "http://"+strings.TrimSuffix(addr.String(), ":80"))
	}
	return strings.Join(urls, " or ")
}

// checkBrowser refuses what a web page asks for.
func (g guard) checkBrowser(r *http.Request) *problem {
	for _, name := range [...]string{"Origin", "Sec-Fetch-Site"} {
		if _, present := r.Header[name]; present {
			return browserRequest.because("the header %s says that a browser sent this request; use a client that is no browser, such as curl", name)
		}
	}
	return nil
}

// checkHeader refuses requests without a header that whoever can only choose a
// URL cannot add (server-side request forgery).
func (g guard) checkHeader(r *http.Request) *problem {
	if !g.requireHeader || !strings.HasPrefix(r.URL.Path, "/v1/") {
		return nil
	}
	values := r.Header["Metadata"]
	if len(values) == 1 && strings.EqualFold(values[0], "true") {
		return nil
	}
	return headerRequired.because(`this VM has the annotation imds.kubevirt.io/require-header; send the header "Metadata: true", once`)
}
