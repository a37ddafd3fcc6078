package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/tools/demo/internal/issuer"
)

// document is what -json prints.
type document struct {
	OK bool `json:"ok"`
	// Error says why not, in one text.
	Error string `json:"error,omitempty"`
	// RunsAs is "root" or "user namespace".
	RunsAs string `json:"runsAs,omitempty"`
	// Steps are those before any pod: the build, the webhook.
	Steps []step `json:"steps,omitempty"`
	// Pods has one entry per binding.
	Pods []*podDocument `json:"pods,omitempty"`
}

// podDocument is what was seen of one pod.
type podDocument struct {
	Binding     string            `json:"binding"`
	Name        string            `json:"name,omitempty"`
	Steps       []step            `json:"steps,omitempty"`
	Patch       []change          `json:"patch,omitempty"`
	Sidecars    []sidecarDocument `json:"sidecars,omitempty"`
	FirstAnswer *startDocument    `json:"firstAnswer,omitempty"`
	Health      string            `json:"healthz,omitempty"`
	Identity    map[string]string `json:"identity,omitempty"`
	Token       *tokenDocument    `json:"token,omitempty"`
	Rotated     *tokenDocument    `json:"rotatedToken,omitempty"`
	Neighbour   []attempt         `json:"neighbour,omitempty"`
	Impostor    *impostorDocument `json:"impostor,omitempty"`
	// UplinkFrames is how many frames about the metadata service have left the
	// pod by its uplink since the first answer.
	UplinkFrames *int `json:"uplinkFrames,omitempty"`

	// answers are the guest's, by path, with the token cut.
	answers map[string]string
}

// sidecarDocument is what the kernel says about a running sidecar.
type sidecarDocument struct {
	Name            string   `json:"name"`
	Command         []string `json:"command"`
	UID             uint32   `json:"uid"`
	GID             uint32   `json:"gid"`
	Groups          []uint32 `json:"groups"`
	BoundingSet     string   `json:"boundingSet"`
	Effective       string   `json:"effectiveCapabilities"`
	NoNewPrivileges bool     `json:"noNewPrivileges"`
}

func (d sidecarDocument) String() string {
	privileges := "may gain privileges"
	if d.NoNewPrivileges {
		privileges = "gains no privileges"
	}
	return fmt.Sprintf("%-12s uid %-5d  capabilities: %-9s  %s", d.Name, d.UID, d.BoundingSet, privileges)
}

// startDocument is how soon the guest was served.
type startDocument struct {
	// Milliseconds from bridge and tap being there to the first answer.
	Milliseconds float64 `json:"milliseconds"`
	// Attempts that the guest had begun by then.
	Attempts int `json:"attempts"`
}

// tokenDocument is a token that the guest got, without the token.
type tokenDocument struct {
	Expires  time.Time     `json:"expirationTimestamp"`
	Header   issuer.Header `json:"header"`
	Claims   issuer.Claims `json:"claims"`
	Verified bool          `json:"signatureVerified"`
}

func (d *tokenDocument) String() string {
	c := d.Claims
	return fmt.Sprintf("signature  %s, verified with the issuer's public key\n"+
		"subject    %s\naudience   %s\nissuer     %s\nexpires    %s\nbound to   pod %s on %s",
		d.Header.Algorithm, c.Subject, strings.Join(c.Audience, ", "), c.Issuer, d.Expires.Format(time.RFC3339),
		c.Kubernetes.Pod.Name, c.Kubernetes.Node.Name)
}

// impostorDocument is how a neighbour fared that took the address for itself.
type impostorDocument struct {
	// TrueAnswers are the guest's requests that got its true token meanwhile.
	TrueAnswers int `json:"trueAnswers"`
	// Requests are those that the impostor got.
	Requests int `json:"requests"`
}

func writeJSON(out io.Writer, d document) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(d)
}
