package checks

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

func tellsIdentity(t *suite.T, v *vmPod) {
	t.Check(v.boot())
	body, err := v.fromGuest().ask(t.Context(), "/v1/identity")
	t.Check(err)
	var got map[string]string
	t.Check(json.Unmarshal(body, &got))
	want := map[string]string{
		"namespace":          tenant,
		"serviceAccountName": vmAccount,
		"vmName":             vmName,
		"podName":            v.pod.Name,
		"vmiUID":             string(v.pod.OwnerReferences[0].UID),
		"nodeName":           v.pod.Spec.NodeName,
	}
	if !maps.Equal(got, want) {
		t.Errorf("it is told %v, want %v", got, want)
	}
}

// givesToken shows the guest's token to the API server.
func givesToken(t *suite.T, v *vmPod) {
	token := askToken(t, v, "")
	status := v.review(t, token)
	if !status.Authenticated {
		t.Fatalf("it is not accepted: %s", status.Error)
	}
	if want := "system:serviceaccount:" + tenant + ":" + vmAccount; status.User.Username != want {
		t.Errorf("it is %s's, want %s's", status.User.Username, want)
	}
	for name, want := range map[string]string{
		"authentication.kubernetes.io/pod-name":  v.pod.Name,
		"authentication.kubernetes.io/pod-uid":   string(v.pod.UID),
		"authentication.kubernetes.io/node-name": v.pod.Spec.NodeName,
	} {
		if got := status.User.Extra[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func givesAudienceToken(t *suite.T, v *vmPod) {
	token := askToken(t, v, vmAudience)
	if status := v.review(t, token, vmAudience); !status.Authenticated || !slices.Equal(status.Audiences, []string{vmAudience}) {
		t.Errorf("for %s it is not accepted: %+v", vmAudience, status)
	}
	if status := v.review(t, token); status.Authenticated {
		t.Errorf("the API server's own audience accepts it")
	}
}

// askToken asks in the guest for the token of an audience, or for the default one, and checks its lifetime.
func askToken(t *suite.T, v *vmPod, audience string) string {
	t.Check(v.boot())
	path := "/v1/token"
	if audience != "" {
		path += "?" + url.Values{"audience": {audience}}.Encode()
	}
	body, err := v.fromGuest().ask(t.Context(), path)
	t.Check(err)
	var answer struct {
		Token               string
		ExpirationTimestamp time.Time
	}
	t.Check(json.Unmarshal(body, &answer))
	if left := time.Until(answer.ExpirationTimestamp); left <= 0 || left > vmTokenSeconds*time.Second {
		t.Errorf("it expires in %s, want at most %d s", left, vmTokenSeconds)
	}
	return answer.Token
}

// review has the API server say whose a token is, for the audiences or for its own.
func (v *vmPod) review(t *suite.T, token string, audiences ...string) authenticationv1.TokenReviewStatus {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	answer, err := kube.Create(t.Context(), v.site.api, "/apis/authentication.k8s.io/v1/tokenreviews", review)
	t.Check(err)
	return answer.Status
}
