package checks

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

func tellsIdentity(t *testing.T, v *VM) {
	check(t, v.boot())
	check(t, v.CheckIdentity(t.Context()))
}

// CheckIdentity asks the guest who it is.
func (v *VM) CheckIdentity(ctx context.Context) error {
	body, err := v.Ask(ctx, "/v1/identity")
	if err != nil {
		return err
	}
	var got map[string]string
	if err := json.Unmarshal(body, &got); err != nil {
		return err
	}
	want := map[string]string{
		"namespace":          tenant,
		"serviceAccountName": vmAccount,
		"vmName":             vmName,
		"podName":            v.pod.Name,
		"vmiUID":             string(v.pod.OwnerReferences[0].UID),
		"nodeName":           v.pod.Spec.NodeName,
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("it is told %v, want %v", got, want)
	}
	return nil
}

func givesToken(t *testing.T, v *VM) {
	check(t, v.boot())
	check(t, v.CheckToken(t.Context()))
}

// CheckToken shows the guest's token to the API server.
func (v *VM) CheckToken(ctx context.Context) error {
	token, err := v.askToken(ctx, "")
	if err != nil {
		return err
	}
	status, err := v.review(ctx, token)
	if err != nil {
		return err
	}
	if !status.Authenticated {
		return fmt.Errorf("it is not accepted: %s", status.Error)
	}
	if want := "system:serviceaccount:" + tenant + ":" + vmAccount; status.User.Username != want {
		return fmt.Errorf("it is %s's, want %s's", status.User.Username, want)
	}
	for name, want := range map[string]string{
		"authentication.kubernetes.io/pod-name":  v.pod.Name,
		"authentication.kubernetes.io/pod-uid":   string(v.pod.UID),
		"authentication.kubernetes.io/node-name": v.pod.Spec.NodeName,
	} {
		if got := status.User.Extra[name]; !slices.Equal(got, []string{want}) {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	return nil
}

func givesAudienceToken(t *testing.T, v *VM) {
	check(t, v.boot())
	token, err := v.askToken(t.Context(), vmAudience)
	check(t, err)
	status, err := v.review(t.Context(), token, vmAudience)
	check(t, err)
	if !status.Authenticated || !slices.Equal(status.Audiences, []string{vmAudience}) {
		t.Errorf("for %s it is not accepted: %+v", vmAudience, status)
	}
	status, err = v.review(t.Context(), token)
	check(t, err)
	if status.Authenticated {
		t.Errorf("the API server's own audience accepts it")
	}
}

// askToken asks in the guest for the token of an audience, or for the default one, and checks its lifetime.
func (v *VM) askToken(ctx context.Context, audience string) (string, error) {
	path := "/v1/token"
	if audience != "" {
		path += "?" + url.Values{"audience": {audience}}.Encode()
	}
	body, err := v.Ask(ctx, path)
	if err != nil {
		return "", err
	}
	var answer struct {
		Token               string
		ExpirationTimestamp time.Time
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	if left := time.Until(answer.ExpirationTimestamp); left <= 0 || left > vmTokenSeconds*time.Second {
		return "", fmt.Errorf("it expires in %s, want at most %d s", left, vmTokenSeconds)
	}
	return answer.Token, nil
}

// review has the API server say whose a token is, for the audiences or for its own.
func (v *VM) review(ctx context.Context, token string, audiences ...string) (authenticationv1.TokenReviewStatus, error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	answer, err := kube.Create(ctx, v.site.api, "/apis/authentication.k8s.io/v1/tokenreviews", review)
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, err
	}
	return answer.Status, nil
}
