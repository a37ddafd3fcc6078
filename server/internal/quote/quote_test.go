package quote

import (
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"plain":                    {"evil.example", `"evil.example"`},
		"empty":                    {"", `""`},
		"line breaks and controls": {"a\r\nSet-Cookie: b\x1b[2J", `"a\r\nSet-Cookie: b\x1b[2J"`},
		"quotes":                   {`a"b`, `"a\"b"`},
		"not ASCII":                {"ä\xff", `"\u00e4\xff"`},
		"100 bytes":                {strings.Repeat("x", 100), `"` + strings.Repeat("x", 100) + `"`},
		"101 bytes are cut":        {strings.Repeat("x", 101), `"` + strings.Repeat("x", 100) + `"...`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Text(test.text); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
