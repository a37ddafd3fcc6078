// Package quote makes text that somebody else wrote fit for an error or a log
// line.
package quote

import "strconv"

// limit is how many bytes of the text are shown.
const limit = 100

// Text returns s in double quotes, with everything but printable ASCII escaped,
// and cut after 100 bytes.
func Text(s string) string {
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
