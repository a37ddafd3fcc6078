package vmtest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// tokens are those that a pod gets.
type tokens struct {
	padding int // bytes in each token that say nothing
	issued  int // how often
	current string
}

// defaultAudience is that of the token that is there without being asked for.
const defaultAudience = "https://kubernetes.default.svc.cluster.local"

// issue is the API server's part. The default token is the first of those that are
// swapped together.
func (v *tokens) issue(pod *corev1.Pod, audience string, lifetime time.Duration) (string, error) {
	isDefault := audience == ""
	if isDefault {
		v.issued++
		audience = defaultAudience
	}
	claims := claims(fmt.Sprintf("%s-%d", pod.Name, v.issued), audience, time.Now(), lifetime)
	if v.padding > 0 {
		padding := make([]byte, v.padding*3/4)
		rand.Read(padding) // never fails: crypto/rand
		claims["padding"] = padding
	}
	token := unsigned(claims)
	if isDefault {
		v.current = token
	}
	return token, nil
}

// addAudiences has the pod's token volume hold a token for each more audience, as
// the webhook does.
func addAudiences(pod *corev1.Pod, audiences []string) {
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		for i, audience := range audiences {
			volume.Projected.Sources = append(volume.Projected.Sources, corev1.VolumeProjection{
				ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: audience, Path: fmt.Sprintf("audiences/%d", i)},
			})
		}
	}
}

// Token makes a JWT with an ID, issued at a time and for a while. Its signature is none, since the server has no key
// to check it with, but is another each time and as long as that of ES256: a mixture of two tokens is neither.
func Token(id, audience string, issued time.Time, lifetime time.Duration) string {
	return unsigned(claims(id, audience, issued, lifetime))
}

func claims(id, audience string, issued time.Time, lifetime time.Duration) map[string]any {
	return map[string]any{
		"aud": []string{audience},
		"exp": issued.Add(lifetime).Unix(),
		"iat": issued.Unix(),
		"nbf": issued.Unix(),
		"jti": id,
	}
}

func unsigned(claims map[string]any) string {
	encode := func(part any) string {
		text, _ := json.Marshal(part) // strings, numbers, bytes
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signature := make([]byte, 64)
	rand.Read(signature)
	return encode(map[string]any{"alg": "ES256", "typ": "JWT"}) + "." + encode(claims) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TokenID is the claim jti of the token in an answer of /v1/token: the name of its pod, and which of the pod's tokens
// it is, from 1 on. An answer without a token has none.
func TokenID(answer string) string {
	var document struct{ Token string }
	json.Unmarshal([]byte(answer), &document)
	_, rest, _ := strings.Cut(document.Token, ".")
	claims, _, _ := strings.Cut(rest, ".")
	decoded, _ := base64.RawURLEncoding.DecodeString(claims)
	var claimed struct{ JTI string }
	json.Unmarshal(decoded, &claimed)
	return claimed.JTI
}
