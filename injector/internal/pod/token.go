package pod

import (
	"encoding/json"
	"strconv"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// applySettings sets the lifetime of the tokens in the pod's token volume and
// adds one token per audience, with the lifetime of the default token, at
// audiences/0, audiences/1 and so on.
func applySettings(pod jsontree.Object, settings annotation.Settings) error {
	if settings.TokenExpirationSeconds == "" && len(settings.TokenAudiences) == 0 {
		return nil
	}
	projected, err := patchset.TokenProjection(pod)
	if err != nil {
		return err
	}
	sources, err := jsontree.LookupList(projected, "sources")
	if err != nil {
		return err
	}
	var lifetime any
	for _, element := range sources {
		source, _ := element.(jsontree.Object)
		token := jsontree.LookupObject(source, "serviceAccountToken")
		if token == nil {
			continue
		}
		if settings.TokenExpirationSeconds != "" {
			token["expirationSeconds"] = json.Number(settings.TokenExpirationSeconds)
		}
		if lifetime == nil {
			lifetime = token["expirationSeconds"]
		}
	}
	for i, audience := range settings.TokenAudiences {
		token := jsontree.Object{"audience": audience, "path": "audiences/" + strconv.Itoa(i)}
		if lifetime != nil {
			token["expirationSeconds"] = lifetime
		}
		sources = append(sources, jsontree.Object{"serviceAccountToken": token})
	}
	projected["sources"] = sources
	return nil
}
