package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/tools/demo/internal/issuer"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// nodeName is the only node of the cluster.
const nodeName = "node-1"

// apiServer stands for the API server, and the scheduler behind it.
type apiServer struct {
	tokens   *issuer.Issuer
	webhooks *http.Client
}

// newAPIServer makes one that reaches services by the addresses given, and
// trusts the certificates of a caBundle.
func newAPIServer(network *podnet.Namespace, services map[string]string, caBundle []byte) (*apiServer, error) {
	tokens, err := issuer.New()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caBundle) {
		return nil, errors.New("the caBundle holds no certificate")
	}
	client := network.HTTPClient()
	client.Timeout = 10 * time.Second
	client.Transport = &http.Transport{
		DialContext: func(ctx context.Context, transport, service string) (net.Conn, error) {
			return network.Dial(ctx, transport, services[service])
		},
		TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	return &apiServer{tokens: tokens, webhooks: client}, nil
}

// admitted is a pod that was let in.
type admitted struct {
	pod *corev1.Pod
	// changes are the webhook's.
	changes []change
	// sidecars are the init containers that the webhook added.
	sidecars []string
}

// create lets a pod in: it asks the webhook, applies its patch, and gives the
// pod a name, a UID and a node.
func (a *apiServer) create(ctx context.Context, raw []byte) (*admitted, error) {
	var before corev1.Pod
	if err := json.Unmarshal(raw, &before); err != nil {
		return nil, err
	}
	response, err := a.review(ctx, "/mutate-pod", metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, before.Namespace, raw)
	if err != nil {
		return nil, err
	}
	changes, err := readChanges(response.Patch)
	if err != nil {
		return nil, fmt.Errorf("JSON patch: %w", err)
	}
	patched, err := applyPatch(response.Patch, raw)
	if err != nil {
		return nil, err
	}
	result := &admitted{pod: &corev1.Pod{}, changes: changes}
	decoder := json.NewDecoder(bytes.NewReader(patched))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(result.pod); err != nil {
		return nil, fmt.Errorf("patched pod: %w", err)
	}
	for _, c := range result.pod.Spec.InitContainers {
		known := func(b corev1.Container) bool { return b.Name == c.Name }
		if !slices.ContainsFunc(before.Spec.InitContainers, known) {
			result.sidecars = append(result.sidecars, c.Name)
		}
	}
	if len(result.sidecars) == 0 {
		return nil, errors.New("the webhook has added no sidecar")
	}
	place(result.pod)
	return result, nil
}

// judge lets the instance in of which KubeVirt made a pod, and returns the pod with
// the annotations that the webhook wrote on the instance: KubeVirt copies them.
func (a *apiServer) judge(ctx context.Context, binding podnet.Binding, pod []byte) ([]byte, error) {
	var made metav1.PartialObjectMetadata
	if err := json.Unmarshal(pod, &made); err != nil {
		return nil, err
	}
	annotations, err := json.Marshal(made.Annotations)
	if err != nil {
		return nil, err
	}
	instance := fmt.Appendf(nil, `{"metadata":{"name":%q,"annotations":%s},"spec":{"domain":{"devices":{"interfaces":[{"name":"default",%q:{}}]}},"networks":[{"name":"default","pod":{}}]}}`,
		made.OwnerReferences[0].Name, annotations, binding)
	kind := metav1.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachineinstances"}
	response, err := a.review(ctx, "/mutate-virtualmachineinstance", kind, made.Namespace, instance)
	if err != nil {
		return nil, err
	}
	if instance, err = applyPatch(response.Patch, instance); err != nil {
		return nil, err
	}
	var judged struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(instance, &judged); err != nil {
		return nil, err
	}
	copied, err := json.Marshal(judged)
	if err != nil {
		return nil, err
	}
	return jsonpatch.MergePatch(pod, copied)
}

// applyPatch returns an object as the webhook's JSON patch leaves it.
func applyPatch(patch, object []byte) ([]byte, error) {
	decoded, err := jsonpatch.DecodePatch(patch)
	if err == nil {
		object, err = decoded.Apply(object)
	}
	if err != nil {
		return nil, fmt.Errorf("JSON patch: %w", err)
	}
	return object, nil
}

// review sends an AdmissionReview to the webhook.
func (a *apiServer) review(ctx context.Context, path string, resource metav1.GroupVersionResource, namespace string, raw []byte) (*admissionv1.AdmissionResponse, error) {
	request := &admissionv1.AdmissionRequest{
		UID:       newUID(),
		Resource:  resource,
		Namespace: namespace,
		Operation: admissionv1.Create,
		Object:    runtime.RawExtension{Raw: raw},
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  request,
	})
	if err != nil {
		return nil, err
	}
	url := "https://" + webhookService + path + "?timeout=10s"
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", "application/json")
	answer, err := a.webhooks.Do(post)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the webhook answers %s: %s", answer.Status, text)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(text, &review); err != nil {
		return nil, fmt.Errorf("the webhook's answer: %w", err)
	}
	switch response := review.Response; {
	case response == nil || response.UID != request.UID:
		return nil, errors.New("the webhook's answer is to another request")
	case !response.Allowed:
		return nil, fmt.Errorf("the webhook refuses: %s", response.Result.Message)
	case response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch:
		return nil, errors.New("the webhook's answer holds no JSON patch")
	default:
		return response, nil
	}
}

// place does what is done to a pod after admission.
func place(pod *corev1.Pod) {
	pod.Name = pod.GenerateName + strings.ToLower(rand.Text()[:5])
	pod.UID = newUID()
	pod.Spec.NodeName = nodeName
	pod.Status.PodIP = podnet.PodAddr.String()
}

// token is the TokenRequest API.
func (a *apiServer) token(pod *corev1.Pod, audience string, lifetime time.Duration) (string, error) {
	return a.tokens.Issue(issuer.Kubernetes{
		Namespace:      pod.Namespace,
		Node:           reference("node", pod.Spec.NodeName),
		Pod:            issuer.Reference{Name: pod.Name, UID: string(pod.UID)},
		ServiceAccount: reference("serviceaccount", pod.Spec.ServiceAccountName),
	}, audience, lifetime)
}

func reference(kind, name string) issuer.Reference {
	return issuer.Reference{Name: name, UID: uidOf(kind + "/" + name)}
}

func newUID() types.UID { return types.UID(uidOf(rand.Text())) }

// uidOf makes a UUID (RFC 9562, version 8) that is the same for the same
// object.
func uidOf(object string) string {
	b := sha256.Sum256([]byte(object))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
