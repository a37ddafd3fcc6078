package annotation

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Value is what an annotation has: text or, in a template, which has no schema, any other JSON.
type Value struct {
	Text    string // or the JSON
	NotText bool   // Text is JSON
}

type rule struct {
	name      string
	allowed   string
	valid     func(value string) bool
	strictest string // stands in for a value that is not understood, where the annotation protects
}

var rules = []rule{
	{Enabled, `"true" or "false"`, isBool, ""},
	{Network, "the name of a network in the VM's spec, 1 to 63 bytes", isShort, ""},
	{BridgeName, `the name of a network interface, 1 to 15 bytes without "/", ":" or white space`, isInterfaceName, ""},
	{TokenAudiences, "1 to 8 different audiences separated by commas, each 1 to 256 printable ASCII characters without spaces", isAudienceList, ""},
	{TokenExpirationSeconds, "an integer from 600 to 4294967296", isIntegerBetween(600, 1<<32), ""},
	{RequireHeader, `"true" or "false"`, isBool, "true"},
	{HopLimit, "an integer from 1 to 255", isIntegerBetween(1, 255), "1"},
}

// Problem says what is wrong with an annotation whose name has Prefix; empty when all is well.
func Problem(name string, value Value) string {
	rule := ruleOf(name)
	switch {
	case rule.name == "" && (name == RedirectPort || slices.Contains(OnPod(), name)):
		return fmt.Sprintf("annotation %s is written by the webhook: remove it", name)
	case rule.name == "":
		return fmt.Sprintf("annotation %s is not known: the nearest known name is %s", Quote(name), nearest(name))
	case value.NotText: // so that "enabled: true" without quotes comes this far
		return fmt.Sprintf("annotation %s: %s is not a string: write it in quotes", name, value)
	case !rule.valid(value.Text):
		return fmt.Sprintf("annotation %s: %s is not allowed: want %s", name, value, rule.allowed)
	}
	return ""
}

// Strictest returns what stands in for a value that is not understood; empty when it is left out.
func Strictest(name string) string { return ruleOf(name).strictest }

func ruleOf(name string) rule {
	for _, rule := range rules {
		if rule.name == name {
			return rule
		}
	}
	return rule{}
}

// IsRedirectPort reports whether value is one that the webhook writes, off where services of a VM usually are.
func IsRedirectPort(value Value) bool {
	return !value.NotText && isIntegerBetween(1024, 65535)(value.Text)
}

// Quote returns text of a tenant's for a message, cut at 63 bytes: it ends in logs and on terminals.
func Quote(text string) string {
	if len(text) > 63 {
		return strconv.Quote(text[:63]) + "..."
	}
	return strconv.Quote(text)
}

// String is the value for a message; without quotes what is not text.
func (v Value) String() string {
	if v.NotText {
		return strings.NewReplacer(`\"`, `"`, `"`, "").Replace(Quote(v.Text))
	}
	return Quote(v.Text)
}

func isBool(value string) bool { return value == "true" || value == "false" }

func isShort(value string) bool {
	return 1 <= len(value) && len(value) <= 63 && !strings.ContainsFunc(value, unicode.IsControl)
}

// isIntegerBetween takes no sign and no leading zero, which another reader might take for octal.
func isIntegerBetween(low, high uint64) func(string) bool {
	return func(value string) bool {
		number, err := strconv.ParseUint(value, 10, 64)
		return err == nil && low <= number && number <= high &&
			strconv.FormatUint(number, 10) == value
	}
}

// isInterfaceName is the kernel's dev_valid_name (net/core/dev.c), for which 0xa0 is white space, but for control
// characters: a container with NUL in its environment never starts.
func isInterfaceName(value string) bool {
	return 1 <= len(value) && len(value) <= 15 && value != "." && value != ".." &&
		!slices.ContainsFunc([]byte(value), func(b byte) bool {
			return b <= ' ' || b == 0x7f || b == '/' || b == ':' || b == 0xa0
		})
}

const maxAudiences = 8

func isAudienceList(value string) bool {
	// Not split before it is known to be short.
	if strings.Count(value, ",") >= maxAudiences {
		return false
	}
	audiences := Audiences(value)
	for i, audience := range audiences {
		if audience == "" || len(audience) > 256 || slices.Contains(audiences[:i], audience) ||
			strings.ContainsFunc(audience, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return false
		}
	}
	return true
}

// Audiences splits a value of TokenAudiences, in the order in which the user wrote them.
func Audiences(value string) []string {
	audiences := strings.Split(value, ",")
	for i := range audiences {
		audiences[i] = strings.TrimSpace(audiences[i])
	}
	return audiences
}

// nearest returns the annotation that a user may set of whose pairs of letters the largest part is in name.
func nearest(name string) string {
	common := func(r rule) int {
		own, pairs := strings.TrimPrefix(r.name, Prefix), 0
		for i := range len(own) - 1 {
			if strings.Contains(name[len(Prefix):], own[i:i+2]) {
				pairs++
			}
		}
		return 1000 * pairs / len(own)
	}
	return slices.MaxFunc(rules, func(a, b rule) int { return common(a) - common(b) }).name
}
