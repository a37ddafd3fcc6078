package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// rendered is what a kustomization renders to, in the types of the API. Each
// field is there at most once but those that are lists.
type rendered struct {
	namespace     *corev1.Namespace
	account       *corev1.ServiceAccount
	deployment    *appsv1.Deployment
	service       *corev1.Service
	budget        *policyv1.PodDisruptionBudget
	quota         *corev1.ResourceQuota
	networkPolicy *networkingv1.NetworkPolicy
	configuration *admissionregistrationv1.MutatingWebhookConfiguration
	patches       *corev1.ConfigMap
	secret        *corev1.Secret
	role          *rbacv1.ClusterRole
	binding       *rbacv1.ClusterRoleBinding
	constraints   *rbacv1.RoleBinding // to an SCC of OpenShift's
	agent         agent
	// certManager are resources of cert-manager.io, by kind and name.
	certManager map[string]map[string]any
	policies    map[string]*admissionregistrationv1.ValidatingAdmissionPolicy
	bindings    map[string]*admissionregistrationv1.ValidatingAdmissionPolicyBinding
	// custom are other custom resources, and ConfigMaps that are not the patches, by kind and name.
	custom map[string]map[string]any
	// all are the metadata of all of them.
	all []metav1.PartialObjectMetadata
}

// agent is what the node agent has, in a namespace of its own.
type agent struct {
	namespace   *corev1.Namespace
	account     *corev1.ServiceAccount
	quota       *corev1.ResourceQuota
	daemonSet   *appsv1.DaemonSet
	constraints map[string]any // of OpenShift
	role        *rbacv1.Role
	binding     *rbacv1.RoleBinding
}

// loadTree returns the repository's manifests, to which a test may add.
func loadTree(t *testing.T) *render.Tree {
	t.Helper()
	files, err := manifest.All(manifest.Defaults)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := render.Load(repository, files)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// build renders the kustomization in folder and reads the result strictly: a field
// that the API does not know is a failure.
func build(t *testing.T, tree *render.Tree, folder string) rendered {
	t.Helper()
	content, err := tree.Build(folder)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, content)
}

func decode(t *testing.T, content []byte) rendered {
	t.Helper()
	r := rendered{certManager: map[string]map[string]any{}, custom: map[string]map[string]any{}}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if err == io.EOF {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		var object metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(document, &object); err != nil {
			t.Fatal(err)
		}
		r.all = append(r.all, object)
		into := map[string]map[string]map[string]any{
			"cert-manager.io/v1":       r.certManager,
			"monitoring.coreos.com/v1": r.custom,
		}[object.APIVersion]
		if object.Kind == "ConfigMap" && object.Name == "imds-dashboard" {
			into = r.custom
		}
		if into != nil {
			fields := map[string]any{}
			if err := yaml.UnmarshalStrict(document, &fields); err != nil {
				t.Fatal(err)
			}
			into[object.Kind+"/"+object.Name] = fields
			continue
		}
		if err := r.decodeTyped(object, document); err != nil {
			t.Fatalf("%s %s: %v", object.Kind, object.Name, err)
		}
	}
}

func (r *rendered) decodeTyped(object metav1.PartialObjectMetadata, document []byte) error {
	if object.Labels["app.kubernetes.io/name"] == contract.NodeAgent {
		return r.agent.decode(object, document)
	}
	switch object.APIVersion + " " + object.Kind {
	case "v1 Namespace":
		return only(&r.namespace, document)
	case "v1 ServiceAccount":
		return only(&r.account, document)
	case "apps/v1 Deployment":
		return only(&r.deployment, document)
	case "v1 Service":
		return only(&r.service, document)
	case "policy/v1 PodDisruptionBudget":
		return only(&r.budget, document)
	case "v1 ResourceQuota":
		return only(&r.quota, document)
	case "networking.k8s.io/v1 NetworkPolicy":
		return only(&r.networkPolicy, document)
	case "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration":
		return only(&r.configuration, document)
	case "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy":
		return named(&r.policies, object.Name, document)
	case "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding":
		return named(&r.bindings, object.Name, document)
	case "v1 ConfigMap":
		return only(&r.patches, document)
	case "v1 Secret":
		return only(&r.secret, document)
	case "rbac.authorization.k8s.io/v1 ClusterRole":
		return only(&r.role, document)
	case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
		return only(&r.binding, document)
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return only(&r.constraints, document)
	default:
		return errors.New("no overlay should have this kind")
	}
}

func (a *agent) decode(object metav1.PartialObjectMetadata, document []byte) error {
	switch object.APIVersion + " " + object.Kind {
	case "v1 Namespace":
		return only(&a.namespace, document)
	case "v1 ServiceAccount":
		return only(&a.account, document)
	case "v1 ResourceQuota":
		return only(&a.quota, document)
	case "apps/v1 DaemonSet":
		return only(&a.daemonSet, document)
	case "rbac.authorization.k8s.io/v1 Role":
		return only(&a.role, document)
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return only(&a.binding, document)
	case "security.openshift.io/v1 SecurityContextConstraints":
		return yaml.UnmarshalStrict(document, &a.constraints)
	default:
		return errors.New("no component should have this kind")
	}
}

// only decodes a document strictly into a field that nothing else has filled.
func only[T any](field **T, document []byte) error {
	if *field != nil {
		return errors.New("there is more than one of this kind")
	}
	*field = new(T)
	return yaml.UnmarshalStrict(document, *field)
}

// named decodes a document strictly into a map by its name.
func named[T any](all *map[string]*T, name string, document []byte) error {
	if *all == nil {
		*all = map[string]*T{}
	}
	(*all)[name] = new(T)
	return yaml.UnmarshalStrict(document, (*all)[name])
}

// buildWith renders an installation of the base with components.
func buildWith(t *testing.T, components ...string) rendered {
	t.Helper()
	content, err := loadTree(t).BuildWith("kustomize/base", components...)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, content)
}
