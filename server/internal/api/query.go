package api

import (
	"net/url"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// parseAudience returns the audience that a query asks for, empty if it asks for
// none. A query that cannot be parsed is refused, or whoever asks for an audience
// would get the default token.
func parseAudience(query string) (string, *problem) {
	if query == "" {
		return "", nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", invalidQuery.because("the query %s is malformed; escape what is special in it (curl -G --data-urlencode audience=A)", quote.Text(query))
	}
	audiences, asked := values["audience"]
	switch {
	case !asked:
		return "", nil
	case len(audiences) > 1:
		return "", invalidQuery.because("the parameter audience is there %d times; ask for one audience at a time", len(audiences))
	case audiences[0] == "":
		return "", invalidQuery.because("the parameter audience is empty; name one, or leave it out for the default token")
	default:
		return audiences[0], nil
	}
}
