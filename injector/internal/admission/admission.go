// Package admission speaks the API server's webhook protocol: AdmissionReview
// admission.k8s.io/v1 over HTTP. What is decided about an object is given to it
// as a Review.
package admission

import "github.com/example/kubevirt-imds/injector/internal/jsontree"

// Request is the part of an admission.k8s.io/v1 AdmissionRequest that reviews
// need. The objects are trees, decoded in the same pass as the request: typed
// objects would lose the fields that a newer API has.
type Request struct {
	UID         string          `json:"uid"`
	Resource    Resource        `json:"resource"`
	SubResource string          `json:"subResource"`
	Namespace   string          `json:"namespace"`
	Name        string          `json:"name"`
	Operation   string          `json:"operation"`
	Object      jsontree.Object `json:"object"`
	OldObject   jsontree.Object `json:"oldObject"`
}

// Resource names what kind of object a request is about.
type Resource struct {
	Group    string `json:"group"`
	Version  string `json:"version"`
	Resource string `json:"resource"`
}

// Action names what is done to what, as in "UPDATE of virtualmachines/status".
func (r *Request) Action() string {
	action := r.Operation + " of " + r.Resource.Resource
	if r.SubResource != "" {
		action += "/" + r.SubResource
	}
	return action
}

// ObjectName is the name of the object, or what is known of it while the API
// server has still to make the rest of it.
func (r *Request) ObjectName() string {
	if r.Name != "" {
		return r.Name
	}
	return jsontree.LookupString(r.Object, "metadata", "generateName")
}

// The operations of a Request that reviews act on.
const (
	Create = "CREATE"
	Update = "UPDATE"
)

// Verdict is the answer to a Request.
type Verdict struct {
	Allowed bool
	// Reason says why the object is refused; one sentence, for whoever ran
	// kubectl apply.
	Reason string
	// Warnings are shown to the client of an allowed request.
	Warnings []string
	// Patch changes the object of an allowed request.
	Patch []jsontree.Operation
}

// Allow lets the object pass as it is.
func Allow(warnings ...string) Verdict {
	return Verdict{Allowed: true, Warnings: warnings}
}

// Deny refuses the object.
func Deny(reason string) Verdict {
	return Verdict{Reason: reason}
}

// Review decides about one request. An error is a fault of ours, not of the
// object; it refuses the object too, since IMDS that is silently missing is
// harder to find than a VM that does not start.
type Review func(*Request) (Verdict, error)
