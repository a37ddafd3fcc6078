// Package admission speaks the API server's webhook protocol: AdmissionReview
// admission.k8s.io/v1 over HTTP, with bounds on what requests may cost. What is
// decided about an object is given to it as a Review.
package admission

import (
	"errors"
	"fmt"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Request is the part of an admission.k8s.io/v1 AdmissionRequest that reviews
// need. The objects are text: typed objects would lose the fields that a newer
// API has.
type Request struct {
	UID         string
	Resource    string
	SubResource string
	Namespace   string
	Name        string
	Operation   string
	// Username is who makes the request.
	Username  string
	Object    jsontree.Value
	OldObject jsontree.Value
}

// maxText is more than any name, namespace, user or UID has, in bytes.
const maxText = 4096

// parse reads an AdmissionReview.
func parse(body []byte) (*Request, error) {
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
	request := &Request{Object: fields["object"], OldObject: fields["oldObject"]}
	for name, text := range map[string]struct {
		value jsontree.Value
		into  *string
	}{
		"uid":               {fields["uid"], &request.UID},
		"namespace":         {fields["namespace"], &request.Namespace},
		"operation":         {fields["operation"], &request.Operation},
		"resource.resource": {fields["resource"].Get("resource"), &request.Resource},
		"subResource":       {fields["subResource"], &request.SubResource},
		"name":              {fields["name"], &request.Name},
		"userInfo.username": {fields["userInfo"].Get("username"), &request.Username},
	} {
		if len(text.value) > maxText {
			return nil, fmt.Errorf("request.%s has more than %d bytes", name, maxText)
		}
		*text.into = text.value.String()
	}
	if request.UID == "" {
		return nil, errors.New("the AdmissionReview has no request with a uid")
	}
	for name, object := range map[string]jsontree.Value{"object": request.Object, "oldObject": request.OldObject} {
		if !object.IsNull() && !object.IsObject() {
			return nil, fmt.Errorf("request.%s is not an object", name)
		}
	}
	return request, nil
}

// Action names what is done to what, as in "UPDATE of virtualmachines/status".
func (r *Request) Action() string {
	action := r.Operation + " of " + r.Resource
	if r.SubResource != "" {
		action += "/" + r.SubResource
	}
	return action
}

// ObjectName is the name of the object, or what is known of it while the API
// server has still to make the rest of it.
func (r *Request) ObjectName() string {
	metadata := r.Object.Get("metadata")
	for _, name := range []jsontree.Value{metadata.Get("name"), metadata.Get("generateName")} {
		if text := name.String(); text != "" && len(text) <= maxText {
			return text
		}
	}
	return r.Name
}

// IsByKubeVirt reports whether one of KubeVirt's own controllers makes the
// request. A tenant may give a ServiceAccount such a name; who does is refused
// less, and gets no more.
func (r *Request) IsByKubeVirt() bool {
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
