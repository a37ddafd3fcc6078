package review

import (
	"encoding/json"
	"strconv"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// setTokens sets the lifetime of the tokens in the pod's token volume and adds
// one token per audience, with the lifetime of the default token, at
// audiences/0, audiences/1 and so on.
func setTokens(pod jsontree.Object, meant annotations) error {
	if !meant.has(annotation.TokenExpirationSeconds) && !meant.has(annotation.TokenAudiences) {
		return nil
	}
	lifetime := meant.text(annotation.TokenExpirationSeconds)
	var audiences []string
	if meant.has(annotation.TokenAudiences) {
		audiences = annotation.Audiences(meant.text(annotation.TokenAudiences))
	}
	projected, err := patchset.TokenProjection(pod)
	if err != nil {
		return err
	}
	sources := jsontree.LookupList(projected, "sources")
	var seconds any
	for _, element := range sources {
		source, _ := element.(jsontree.Object)
		token := jsontree.LookupObject(source, "serviceAccountToken")
		if token == nil {
			continue
		}
		if lifetime != "" {
			token["expirationSeconds"] = json.Number(lifetime)
		}
		if seconds == nil {
			seconds = token["expirationSeconds"]
		}
	}
	for i, audience := range audiences {
		token := jsontree.Object{"audience": audience, "path": "audiences/" + strconv.Itoa(i)}
		if seconds != nil {
			token["expirationSeconds"] = seconds
		}
		sources = append(sources, jsontree.Object{"serviceAccountToken": token})
	}
	projected["sources"] = sources
	return nil
}
