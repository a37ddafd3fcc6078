package review

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// setTokens goes by the pod's annotations, which are the user's or those of the operator's patches: it sets the lifetime of the tokens, and adds one for each audience, at audiences/0 and so on.
func setTokens(pod jsontree.Object) error {
	given := jsontree.Lookup[jsontree.Object](pod, "metadata", "annotations")
	lifetime, audiences := jsontree.Lookup[string](given, annotation.TokenExpirationSeconds), jsontree.Lookup[string](given, annotation.TokenAudiences)
	if lifetime == "" && audiences == "" {
		return nil
	}
	projected, err := patchset.TokenProjection(pod)
	if err != nil {
		return err
	}
	sources := jsontree.Lookup[[]any](projected, "sources")
	var seconds any
	for _, element := range sources {
		source, _ := element.(jsontree.Object)
		token := jsontree.Lookup[jsontree.Object](source, "serviceAccountToken")
		if token != nil && lifetime != "" {
			token["expirationSeconds"] = json.Number(lifetime)
		}
		if seconds == nil {
			seconds = token["expirationSeconds"]
		}
	}
	if audiences != "" {
		for i, audience := range annotation.Audiences(audiences) {
			token := jsontree.Object{"audience": audience, "path": "audiences/" + strconv.Itoa(i)}
			if seconds != nil {
				token["expirationSeconds"] = seconds
			}
			sources = append(sources, jsontree.Object{"serviceAccountToken": token})
		}
	}
	projected["sources"] = sources
	return nil
}

// guaranteedCPU is enough under any flood by the guest, and slows the wiring by milliseconds, as measured.
const guaranteedCPU = "50m"

// shown is what all of the pod's own containers say about a resource.
type shown struct {
	missing bool              // in one of them, the request or the limit
	least   resource.Quantity // the least request, but for that of compute
	most    resource.Quantity // the largest limit
	ratio   float64           // the largest of a limit to its request
}

// readResources reads what a pod's own containers show, and whether it is Guaranteed by the kubelet's rule.
func readResources(pod jsontree.Object) (all map[string]*shown, guaranteed bool) {
	all, guaranteed = map[string]*shown{"cpu": {ratio: 1}, "memory": {ratio: 1}}, true
	for _, element := range containersOf(pod) {
		if !guaranteed && all["cpu"].missing && all["memory"].missing {
			break // there is no more to know
		}
		container, _ := element.(jsontree.Value)
		containerName, resources := jsontree.Name(container), container.Get("resources")
		if patchset.IsSidecar(containerName) {
			continue
		}
		for name, s := range all {
			request, hasRequest := readQuantity(resources.Get("requests", name))
			limit, _ := readQuantity(resources.Get("limits", name))
			guaranteed = guaranteed && !limit.IsZero() && (!hasRequest || request.Cmp(limit) == 0)
			if request.IsZero() || limit.IsZero() {
				s.missing = true
				continue
			}
			if limit.Cmp(s.most) > 0 {
				s.most = limit
			}
			s.ratio = max(s.ratio, limit.AsApproximateFloat64()/request.AsApproximateFloat64())
			if containerName != "compute" && (s.least.IsZero() || request.Cmp(s.least) < 0) {
				s.least = request
			}
		}
	}
	return all, guaranteed
}

func containersOf(pod jsontree.Object) []any {
	return slices.Concat(jsontree.Lookup[[]any](pod, "spec", "initContainers"), jsontree.Lookup[[]any](pod, "spec", "containers"))
}

// readQuantity leaves out what takes long to compare, such as "1e500000000".
func readQuantity(value jsontree.Value) (resource.Quantity, bool) {
	text, isText := value.Text()
	if !isText {
		text = string(value.Raw())
	}
	if i := strings.IndexAny(text, "eE"); len(text) > 24 || i >= 0 && len(text)-i > 4 {
		return resource.Quantity{}, false
	}
	quantity, err := resource.ParseQuantity(text)
	return quantity, err == nil
}

// fitResources gives the sidecars in after requests and limits that the pod's own containers, in before, show
// to be right. A Guaranteed pod, which KubeVirt wants for dedicated CPUs, must stay one. In any other, a
// LimitRange that takes KubeVirt's containers must take the sidecars: by the least request, the largest
// limit, and the largest ratio. What the pod does not show is for a patch file of the operator's.
func fitResources(before, after jsontree.Object, isInjected bool) {
	own, guaranteed := readResources(before)
	if !guaranteed && (isInjected || own["cpu"].missing && own["memory"].missing) {
		return
	}
	for _, list := range []string{"initContainers", "containers"} {
		for _, name := range []string{patchset.InitContainer, patchset.ServerContainer} {
			container := jsontree.Named(jsontree.Lookup[[]any](after, "spec", list), name)
			if container == nil {
				continue
			}
			requests, errRequests := jsontree.Ensure(container, "resources", "requests")
			limits, errLimits := jsontree.Ensure(container, "resources", "limits")
			switch {
			case errRequests != nil || errLimits != nil:
			case guaranteed:
				guarantee(requests, limits)
			default:
				own["cpu"].raise("cpu", requests, limits)
				own["memory"].raise("memory", requests, limits)
			}
		}
	}
}

func guarantee(requests, limits jsontree.Object) {
	if requests["cpu"] != limits["cpu"] || limits["cpu"] == nil {
		requests["cpu"], limits["cpu"] = guaranteedCPU, guaranteedCPU
	}
	limits["memory"] = cmp.Or(limits["memory"], requests["memory"])
	requests["memory"] = limits["memory"]
}

// raise raises a request, and a limit that is then below it, to what the pod's own containers show, which all
// have a limit where a LimitRange or a quota asks for one.
func (s *shown) raise(name string, requests, limits jsontree.Object) {
	request, errRequest := resource.ParseQuantity(jsontree.Lookup[string](requests, name))
	limit, errLimit := resource.ParseQuantity(jsontree.Lookup[string](limits, name))
	if s.missing || errRequest != nil || errLimit != nil {
		return // in the sidecar, the operator's patches leave it out
	}
	if limit.Cmp(s.most) > 0 {
		limit = s.most
		limits[name] = limit.String()
	}
	byRatio := resource.NewMilliQuantity(int64(math.Ceil(float64(limit.MilliValue())/s.ratio)), limit.Format)
	if name == "memory" {
		byRatio = resource.NewQuantity(int64(math.Ceil(float64(limit.Value())/s.ratio)), limit.Format)
	}
	wanted := request
	for _, least := range []resource.Quantity{s.least, *byRatio} {
		if least.Cmp(wanted) > 0 {
			wanted = least
			requests[name] = wanted.String()
		}
	}
	if wanted.Cmp(limit) > 0 {
		limits[name] = wanted.String()
	}
}
