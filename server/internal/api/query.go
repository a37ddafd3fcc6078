package api

import (
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// parseAudience returns the audience that a request asks for, empty if it asks for
// none. Every other parameter is refused, or whoever misspells audience would get
// the token for the API server.
func parseAudience(r *http.Request) (string, *problem) {
	values, p := parseQuery(r)
	if p != nil {
		return "", p
	}
	audiences, asked := values["audience"]
	delete(values, "audience")
	switch {
	case len(values) > 0:
		return "", invalidQuery.because("there is no parameter %s; the only one is audience (/v1/token?audience=A), leave it out for the default token", firstName(values))
	case !asked:
		return "", nil
	case len(audiences) > 1:
		return "", invalidQuery.because("the parameter audience is given %d times; ask for one audience at a time", len(audiences))
	case audiences[0] == "":
		return "", invalidQuery.because("the parameter audience is empty; name one, or leave it out for the default token")
	default:
		return audiences[0], nil
	}
}

// checkNoQuery refuses all parameters: nobody shall think that one had an effect.
func checkNoQuery(r *http.Request) *problem {
	values, p := parseQuery(r)
	if p == nil && len(values) > 0 {
		p = invalidQuery.because("there is no parameter %s; this path has none, leave it out", firstName(values))
	}
	return p
}

// parseQuery returns the parameters of a request. In a body (curl -X GET -d
// audience=A) they would go unseen.
func parseQuery(r *http.Request) (url.Values, *problem) {
	if r.ContentLength != 0 {
		return nil, invalidQuery.because("the request has a body, which is not read; write parameters into the URL (curl -G --data-urlencode audience=A)")
	}
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalidQuery.because("the query %s is malformed; escape what is special in it (curl -G --data-urlencode audience=A)", quote.Text(r.URL.RawQuery))
	}
	return values, nil
}

// firstName quotes one of the parameters, the same each time.
func firstName(values url.Values) string {
	return quote.Text(slices.Min(slices.Collect(maps.Keys(values))))
}
