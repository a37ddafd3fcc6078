package review

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Request is what reviews need of an AdmissionRequest. Typed objects would lose the fields of a newer API.
type Request struct {
	UID, Resource, SubResource, Namespace, Name, Operation string
	Username                                               string // who makes it
	Remote                                                 string // address of who has sent the review
	Object, OldObject                                      jsontree.Value
	metadata                                               map[string]jsontree.Value // what is looked at of the object's
}

// maxText is more than any name, namespace, UID or ServiceAccount's user name has, in bytes.
const maxText = 512

// ParseRequest reads an AdmissionReview.
func ParseRequest(body []byte) (*Request, error) {
	review, err := jsontree.Parse(body)
	if err != nil {
		return nil, fmt.Errorf("the body is not an AdmissionReview: %w", err)
	}
	top := review.Fields("kind", "apiVersion", "request")
	if kind, version := top["kind"].String(), top["apiVersion"].String(); version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
		return nil, fmt.Errorf(
			"%s of %s is not supported: set admissionReviewVersions to v1 in the webhook's configuration, so that it gets an AdmissionReview of admission.k8s.io/v1",
			annotation.Quote(kind), annotation.Quote(version))
	}
	fields := top["request"].Fields("uid", "resource", "subResource", "namespace", "name", "operation", "userInfo", "object", "oldObject")
	r := &Request{Object: fields["object"], OldObject: fields["oldObject"], Username: fields["userInfo"].Get("username").String()}
	for name, object := range map[string]jsontree.Value{"object": r.Object, "oldObject": r.OldObject} {
		if !object.IsNull() && !object.IsObject() {
			return nil, fmt.Errorf("request.%s is not an object", name)
		}
	}
	fields["resource"] = fields["resource"].Get("resource")
	for name, into := range map[string]*string{
		"uid": &r.UID, "resource": &r.Resource, "subResource": &r.SubResource, "namespace": &r.Namespace,
		"name": &r.Name, "operation": &r.Operation,
	} {
		if *into = fields[name].String(); len(*into) > maxText {
			return nil, fmt.Errorf("request.%s has more than %d bytes", name, maxText)
		}
	}
	if r.UID == "" {
		return nil, errors.New("the AdmissionReview has no request with a uid")
	}
	return r, nil
}

// action names what is done to what, as in "UPDATE of virtualmachines/status".
func (r *Request) action() string {
	return strings.TrimSuffix(r.Operation+" of "+r.Resource+"/"+r.SubResource, "/")
}

// ObjectName is the name of the object, as far as the API server has made it.
func (r *Request) ObjectName() string {
	return cut(cmp.Or(r.metadata["name"].String(), r.metadata["generateName"].String(), r.Name), maxNameLength)
}

// cut bounds a tenant's text that is written somewhere, in bytes.
func cut(text string, most int) string {
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// isByKubeVirt: a tenant who gives a ServiceAccount such a name is refused less, and gets no more.
func (r *Request) isByKubeVirt() bool {
	account, found := strings.CutPrefix(r.Username, "system:serviceaccount:")
	_, name, _ := strings.Cut(account, ":")
	return found && strings.HasPrefix(name, "kubevirt-")
}

// The operations of a Request that reviews act on.
const (
	Create = "CREATE"
	Update = "UPDATE"
)

// Verdict is the answer to a Request.
type Verdict struct {
	Allowed  bool
	Reason   string   // of a refusal: one sentence, for whoever ran kubectl apply
	Warnings []string // for the client of an allowed request
	Patch    []byte   // the JSON patch for its object
	Outcome  Outcome
}

// Outcome is what a request came to, for metrics: one of Outcomes, without a word of a tenant's.
type Outcome struct{ Result, Reason string }

// The results, and why a request has one.
const (
	allowed     = "allowed"
	patched     = "patched"
	refused     = "refused"
	tolerated   = "tolerated" // wrong, and not refused
	notInjected = "not_injected"

	byAnnotation = "annotation"
	bySpec       = "spec"           // no interface can be served, or a volume has a name of ours
	byTemplate   = "template"       // the VM has no place for annotations
	byName       = "reserved_name"  // of a container or a volume
	byNamespace  = "host_namespace" // which the pod shares
	byOwner      = "owner"          // is no instance
	byShape      = "malformed"      // a pod that the API server would refuse, or that KubeVirt never makes
	byNoVerdict  = "no_verdict"     // of the instance's review
)

// Outcomes returns all that there are.
func Outcomes() []Outcome {
	outcomes := []Outcome{{allowed, ""}, {patched, ""}}
	for result, reasons := range map[string][]string{
		refused:     {byAnnotation, bySpec, byTemplate, byName, byNamespace, byOwner, byShape},
		tolerated:   {byAnnotation, bySpec, byTemplate},
		notInjected: {byAnnotation, bySpec, byName, byNoVerdict},
	} {
		for _, reason := range reasons {
			outcomes = append(outcomes, Outcome{result, reason})
		}
	}
	return outcomes
}

// Allow lets the object pass as it is.
func Allow(warnings ...string) Verdict {
	return Verdict{Allowed: true, Warnings: warnings, Outcome: Outcome{Result: allowed}}
}

// change has the verdict lead from before to after.
func (v Verdict) change(before, after jsontree.Object) Verdict {
	if v.Patch = jsontree.Diff(before, after); v.Patch != nil && v.Outcome.Result == allowed {
		v.Outcome.Result = patched
	}
	return v
}

// Func decides about one request.
type Func func(*Request) Verdict
