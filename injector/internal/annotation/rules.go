package annotation

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

type rule struct {
	name    string
	allowed string
	valid   func(value string) bool
}

var rules = []rule{
	{Enabled, `"true" or "false"`, isBool},
	{BridgeName, `the name of a network interface, 1 to 15 bytes without "/", ":" or white space`, isInterfaceName},
	{TokenAudiences, "1 to 8 different audiences separated by commas, each 1 to 256 printable ASCII characters without spaces", isAudienceList},
	{TokenExpirationSeconds, "an integer from 600 to 4294967296", isIntegerBetween(600, 1<<32)},
	{RequireHeader, `"true" or "false"`, isBool},
	{HopLimit, "an integer from 1 to 255", isIntegerBetween(1, 255)},
}

// redirectPort stays off the ports at which the services of a VM usually are. It
// is no rule for users.
var redirectPort = rule{RedirectPort, "an integer from 1024 to 65535, as the webhook writes it on the VirtualMachineInstance", isIntegerBetween(1024, 65535)}

func check(name string, value any) string {
	switch {
	case slices.Contains(writtenByWebhook, name):
		return fmt.Sprintf("annotation %s is written by the webhook: remove it", name)
	case !slices.ContainsFunc(rules, func(r rule) bool { return r.name == name }):
		return fmt.Sprintf("annotation %s is not known: the nearest known name is %s", Quote(name), nearest(name))
	default:
		return checkValue(name, value)
	}
}

func checkValue(name string, value any) string {
	return rules[slices.IndexFunc(rules, func(r rule) bool { return r.name == name })].check(value)
}

func (r rule) check(value any) string {
	text, ok := value.(string)
	if !ok {
		// A VM's template keeps what its schema does not know, so that
		// "enabled: true" without quotes comes this far.
		return fmt.Sprintf("annotation %s: %s is not a string: write it in quotes", r.name, Quote(value))
	}
	if !r.valid(text) {
		return fmt.Sprintf("annotation %s: %s is not allowed: want %s", r.name, Quote(text), r.allowed)
	}
	return ""
}

// maxQuoted is how many bytes of a value or a name a message repeats.
const maxQuoted = 63

// Quote returns an annotation's value for a message, cut at 63 bytes: values are
// the tenant's, and end in logs and on terminals. What is not a string comes
// back as JSON.
func Quote(value any) string {
	text, isString := value.(string)
	if !isString {
		encoded, err := json.Marshal(value)
		if err != nil {
			return fmt.Sprintf("a %T", value)
		}
		text = string(encoded)
	}
	kept, more := text, ""
	if len(text) > maxQuoted {
		kept, more = text[:maxQuoted], "..."
	}
	if isString {
		kept = strconv.Quote(kept)
	}
	return kept + more
}

func isBool(value string) bool { return value == "true" || value == "false" }

// isIntegerBetween takes decimal digits only: no sign, no space, no leading
// zero, which another reader might take for octal.
func isIntegerBetween(low, high uint64) func(string) bool {
	return func(value string) bool {
		number, err := strconv.ParseUint(value, 10, 64)
		return err == nil && low <= number && number <= high &&
			strconv.FormatUint(number, 10) == value
	}
}

// isInterfaceName is the kernel's dev_valid_name (net/core/dev.c), which looks
// at bytes and takes 0xa0 for white space.
func isInterfaceName(value string) bool {
	return 1 <= len(value) && len(value) <= 15 && value != "." && value != ".." &&
		!slices.ContainsFunc([]byte(value), func(b byte) bool {
			return b == '/' || b == ':' || b == ' ' || '\t' <= b && b <= '\r' || b == 0xa0
		})
}

func isAudienceList(value string) bool {
	audiences := splitAudiences(value)
	for i, audience := range audiences {
		if audience == "" || len(audience) > 256 || slices.Contains(audiences[:i], audience) {
			return false
		}
		if strings.ContainsFunc(audience, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return false
		}
		if i == 8 {
			return false
		}
	}
	return true
}

func splitAudiences(value string) []string {
	audiences := strings.Split(value, ",")
	for i := range audiences {
		audiences[i] = strings.TrimSpace(audiences[i])
	}
	return audiences
}

// nearest returns the annotation that a user may set whose name takes the
// fewest edits to get from name.
func nearest(name string) string {
	// Annotation names have 63 characters at most, but a VM's template can
	// carry longer ones; the distance takes time in proportion.
	own := strings.TrimPrefix(name, Prefix)
	own = own[:min(len(own), maxQuoted)]
	best := slices.MinFunc(rules, func(a, b rule) int {
		return editDistance(own, strings.TrimPrefix(a.name, Prefix)) -
			editDistance(own, strings.TrimPrefix(b.name, Prefix))
	})
	return best.name
}

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitution, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
