package main

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRequestsThatAreNoAdmissionReview(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	review := string(reviewOf(t, podRequest([]byte(`{}`))))
	for _, test := range []struct {
		name, path, contentType, body string
		status                        int
		answer                        string
	}{
		{"content type of a form", "/mutate-pod", "application/x-www-form-urlencoded", review,
			http.StatusUnsupportedMediaType, "send application/json"},
		{"no content type", "/mutate-virtualmachine", "", review,
			http.StatusUnsupportedMediaType, `content type ""`},
		{"charset beside the content type", "/mutate-pod", "application/json; charset=utf-8", review,
			http.StatusOK, `"allowed":true`},
		{"not JSON", "/mutate-pod", "application/json", "kind: AdmissionReview",
			http.StatusBadRequest, "the body is not an AdmissionReview: invalid character"},
		{"empty", "/mutate-pod", "application/json", "",
			http.StatusBadRequest, "not an AdmissionReview"},
		{"two values", "/mutate-pod", "application/json", review + review,
			http.StatusBadRequest, "after top-level value"},
		{"version v1beta1", "/mutate-pod", "application/json", strings.Replace(review, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1),
			http.StatusBadRequest, `"admission.k8s.io/v1beta1" is not supported: set admissionReviewVersions to v1`},
		{"another kind", "/mutate-pod", "application/json", strings.Replace(review, "AdmissionReview", "Status", 1),
			http.StatusBadRequest, `"Status" of "admission.k8s.io/v1" is not supported`},
		{"no request", "/mutate-pod", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
			http.StatusBadRequest, "no request with a uid"},
		{"object that is a list", "/mutate-pod", "application/json", string(reviewOf(t, podRequest([]byte(`[]`)))),
			http.StatusBadRequest, "request.object is not an object"},
		{"unknown path", "/validate", "application/json", review,
			http.StatusNotFound, "not found"},
		{"larger than any object", "/mutate-pod", "application/json", `{"apiVersion":"` + strings.Repeat("v", 6<<20+64<<10) + `"}`,
			http.StatusRequestEntityTooLarge, "more than 6356992 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := w.in(t)
			status, answer := w.post(test.path, test.contentType, []byte(test.body))
			if status != test.status || !strings.Contains(string(answer), test.answer) {
				t.Errorf("got %d %s, want %d with %q", status, answer, test.status, test.answer)
			}
			if test.status == http.StatusNotFound && w.log.count("unknown path or method: check the webhook's configuration") == 0 {
				t.Error("the log does not say that the path is unknown")
			}
		})
	}
}

func TestOtherMethodsThanPost(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, method := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		request, err := http.NewRequest(method, w.url+"/mutate-pod", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		response, err := w.client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed || response.Header.Get("Allow") != "POST" {
			t.Errorf("%s: got %s with Allow %q", method, response.Status, response.Header.Get("Allow"))
		}
	}
}

func TestUpdateWithTwoObjectsOfTheLargestSize(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	vm := []byte(`{"metadata":{"annotations":{"imds.kubevirt.io/enabled":"true"}},"spec":{"template":{"note":"` +
		strings.Repeat("x", 3<<19) + `"}}}`)
	if response := w.review("/mutate-virtualmachine", vmRequest(vm, vm)); !response.Allowed {
		t.Errorf("refused: %v", response.Result)
	}
}

func TestBodyWithoutALengthIsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	response, err := w.client().Post(w.url+"/mutate-pod", "application/json", io.MultiReader(strings.NewReader("{}")))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusLengthRequired {
		t.Errorf("got %s", response.Status)
	}
}

// A repairing webhook is called for KubeVirt's own writes.
func TestRepairNeverRefuses(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	vm, _ := readCase(t, "virtualmachine", "sriov-only")
	vmi, _ := readCase(t, "virtualmachineinstance", "sriov-only")
	for path, request := range map[string]map[string]any{
		"virtualmachine":         vmRequest(vm, nil),
		"virtualmachineinstance": vmiRequest(vmi, nil),
	} {
		refused, repaired := w.review("/mutate-"+path, request), w.review("/repair-"+path, request)
		if refused.Allowed || !repaired.Allowed || len(repaired.Warnings) != 1 || repaired.Warnings[0] != refused.Result.Message {
			t.Errorf("%s: refused with %+v, repaired with %+v", path, refused.Result, repaired)
		}
	}
}

func TestWrongRulesAreAllowedWithWarning(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	pod := podRequest(fixture(t, "masquerade"))
	pod["operation"] = "UPDATE"
	for path, request := range map[string]map[string]any{
		"/mutate-pod":            pod,
		"/mutate-virtualmachine": podRequest(fixture(t, "masquerade")),
	} {
		response := w.review(path, request)
		if !response.Allowed || response.Patch != nil || len(response.Warnings) != 1 ||
			!strings.Contains(response.Warnings[0], "of pods: check the rules") {
			t.Errorf("%s: got allowed %v, patch %q, warnings %q", path, response.Allowed, response.Patch, response.Warnings)
		}
	}
}

// A tenant may create such a pod: the API server validates it after the webhooks.
func TestPodOfUnexpectedShapeIsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, c := range []struct{ old, new, want string }{
		{`"name":"compute"`, `"name":{}`, "spec.containers[0] has no name"},
		{`"spec":{`, `"spec":null,"other":{`, "spec is not an object"},
		{`"spec":{`, `"spec":{"initContainers":"none",`, "spec.initContainers is not a list"},
	} {
		pod := bytes.Replace(fixture(t, "masquerade"), []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(pod, fixture(t, "masquerade")) {
			t.Fatalf("%s is not in the pod", c.old)
		}
		response := w.review("/mutate-pod", podRequest(pod))
		if response.Allowed || !strings.Contains(response.Result.Message, c.want) {
			t.Errorf("%s: %+v", c.new, response)
		}
	}
	if counted := w.scrape()[admissions("pods", "refused", "malformed")]; counted != 3 {
		t.Errorf("%v are counted as malformed", counted)
	}
}
