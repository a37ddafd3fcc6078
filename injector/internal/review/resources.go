package review

import (
	"math"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// guaranteedCPU is both request and limit of a sidecar in a Guaranteed pod:
// measured, it wires a guest in some milliseconds more than without a limit, and
// answers the liveness probe within its time under any flood by the guest.
var guaranteedCPU = resource.MustParse("50m")

// quantities of one container, by "cpu" and "memory".
type quantities struct {
	requests, limits map[string]resource.Quantity
}

func readQuantities(container jsontree.Value) quantities {
	read := func(values jsontree.Value) map[string]resource.Quantity {
		found := map[string]resource.Quantity{}
		for _, name := range []string{"cpu", "memory"} {
			value := values.Get(name)
			text, isText := value.Text()
			if !isText {
				text = string(value)
			}
			if quantity, err := resource.ParseQuantity(text); err == nil && len(text) <= maxNameLength {
				found[name] = quantity
			}
		}
		return found
	}
	resources := container.Get("resources")
	return quantities{read(resources.Get("requests")), read(resources.Get("limits"))}
}

// hasLimits reports whether every container of the pod has a limit on CPU, or
// every one on memory. Without, fitResources changes nothing.
func hasLimits(spec map[string]jsontree.Value) bool {
	cpu, memory := true, true
	for _, list := range []string{"initContainers", "containers"} {
		for container := range spec[list].Elements() {
			limits := container.Get("resources", "limits")
			cpu, memory = cpu && limits.Get("cpu") != nil, memory && limits.Get("memory") != nil
		}
	}
	return cpu || memory
}

// fitResources gives the sidecars requests and limits that the pod's own
// containers show to be right. A Guaranteed pod, which KubeVirt wants for
// dedicated CPUs, must stay one. In any other, a LimitRange that takes KubeVirt's
// small containers must take the sidecars too: none requests less than they, and
// no limit is a larger multiple of its request. What the pod does not show, such
// as a LimitRange with nothing but a minimum, is for a patch file of the
// operator's.
func fitResources(spec map[string]jsontree.Value, tree jsontree.Object, isInjected bool) {
	if !hasLimits(spec) {
		return
	}
	var own []quantities
	compute := -1
	for _, list := range []string{"initContainers", "containers"} {
		for container := range spec[list].Elements() {
			switch container.Get("name").String() {
			case patchset.InitContainer, patchset.ServerContainer:
				continue
			case "compute":
				compute = len(own)
			}
			own = append(own, readQuantities(container))
		}
	}
	guaranteed := areGuaranteed(own)
	if isInjected && !guaranteed {
		return
	}
	for _, list := range []string{"initContainers", "containers"} {
		elements, _ := jsontree.LookupList(tree, "spec", list)
		for _, element := range elements {
			container, _ := element.(jsontree.Object)
			if name := jsontree.LookupString(container, "name"); name != patchset.InitContainer && name != patchset.ServerContainer {
				continue
			}
			requests, errRequests := jsontree.Ensure(container, "resources", "requests")
			limits, errLimits := jsontree.Ensure(container, "resources", "limits")
			if errRequests != nil || errLimits != nil {
				continue
			}
			if guaranteed {
				guarantee(requests, limits)
				continue
			}
			for _, name := range []string{"cpu", "memory"} {
				raise(name, requests, limits, own, compute)
			}
		}
	}
}

// areGuaranteed is the rule of the kubelet's QoS classes.
func areGuaranteed(containers []quantities) bool {
	for _, container := range containers {
		for _, name := range []string{"cpu", "memory"} {
			limit := container.limits[name]
			request, found := container.requests[name]
			if limit.IsZero() || found && request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return len(containers) > 0
}

func guarantee(requests, limits jsontree.Object) {
	if requests["cpu"] != limits["cpu"] || limits["cpu"] == nil {
		requests["cpu"], limits["cpu"] = guaranteedCPU.String(), guaranteedCPU.String()
	}
	if limits["memory"] != nil {
		requests["memory"] = limits["memory"]
	} else {
		limits["memory"] = requests["memory"]
	}
}

// raise raises a sidecar's request to what the pod's own containers show, all of
// which have a limit where a LimitRange or a quota asks for one.
func raise(name string, requests, limits jsontree.Object, own []quantities, compute int) {
	request, errRequest := resource.ParseQuantity(jsontree.LookupString(requests, name))
	limit, errLimit := resource.ParseQuantity(jsontree.LookupString(limits, name))
	if errRequest != nil || errLimit != nil {
		return // the operator's patches leave it out
	}
	wanted := request
	least, ratio := resource.Quantity{}, 1.0
	for i, container := range own {
		has, most := container.requests[name], container.limits[name]
		if has.IsZero() || most.IsZero() {
			return
		}
		ratio = max(ratio, most.AsApproximateFloat64()/has.AsApproximateFloat64())
		if i != compute && (least.IsZero() || has.Cmp(least) < 0) {
			least = has
		}
	}
	byRatio := resource.NewMilliQuantity(int64(math.Ceil(float64(limit.MilliValue())/ratio)), limit.Format)
	if name == "memory" {
		byRatio = resource.NewQuantity(int64(math.Ceil(float64(limit.Value())/ratio)), limit.Format)
	}
	for _, shown := range []resource.Quantity{least, *byRatio} {
		if shown.Cmp(wanted) > 0 {
			wanted = shown
		}
	}
	if wanted.Cmp(request) > 0 {
		requests[name] = wanted.String()
	}
	if wanted.Cmp(limit) > 0 {
		limits[name] = wanted.String()
	}
}
