package token

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

func TestParseJWT(t *testing.T) {
	const exp = 1800000000 // 2027-01-15T08:00:00Z
	tests := map[string]struct {
		payload   string
		expires   int64
		audiences []string
	}{
		"a time to begin":             {`{"aud":"a","nbf":1700000000,"exp":1800000000}`, exp, []string{"a"}},
		"audience is an array":        {`{"aud":["a","b"],"exp":1800000000}`, exp, []string{"a", "b"}},
		"audience is a string":        {`{"aud":"a","exp":1800000000}`, exp, []string{"a"}},
		"expiry with a fraction":      {`{"aud":"a","exp":1800000000.999}`, exp, []string{"a"}},
		"expiry with an exponent":     {`{"aud":"a","exp":1.8e9}`, exp, []string{"a"}},
		"expiry in 1970":              {`{"aud":"a","exp":0}`, 0, []string{"a"}},
		"expiry at the end of time":   {`{"aud":"a","exp":253402300799}`, 253402300799, []string{"a"}},
		"names differ in case":        {`{"Exp":1,"exp":1800000000,"EXP":2,"AUD":"b","aud":"a"}`, exp, []string{"a"}},
		"a name twice: the last wins": {`{"exp":1,"aud":"a","exp":1800000000}`, exp, []string{"a"}},
		"other claims":                {`{"aud":"a","exp":1800000000,"iss":{"x":[null]}}`, exp, []string{"a"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseJWT([]byte(tokentest.Encode(`{"alg":"none"}`, test.payload, "signature")))
			if err != nil {
				t.Fatal(err)
			}
			if got.expires.Unix() != test.expires || got.expires.Nanosecond() != 0 || got.expires.Location() != time.UTC {
				t.Errorf("got expiry %v, want %v", got.expires, time.Unix(test.expires, 0).UTC())
			}
			if !slices.Equal(got.audiences, test.audiences) {
				t.Errorf("got audiences %q, want %q", got.audiences, test.audiences)
			}
		})
	}
}

func TestParseJWTRefuses(t *testing.T) {
	payload := func(payload string) string {
		return tokentest.Encode(`{"alg":"none"}`, payload, "signature")
	}
	good := payload(`{"aud":"a","exp":1800000000}`)
	header, rest, _ := strings.Cut(good, ".")
	tests := map[string]struct{ compact, reason string }{
		"nothing":                      {"", "three parts"},
		"two parts":                    {header + "." + header, "three parts"},
		"four parts":                   {good + ".x", "three parts"},
		"empty header":                 {"." + rest, "empty"},
		"empty signature":              {good[:strings.LastIndex(good, ".")+1], "empty"},
		"half of it":                   {good[:len(good)/2], "three parts"},
		"padding":                      {header + "=." + rest, "base64url"},
		"base64, not base64url":        {header + "." + rest + "+/", "base64url"},
		"bits left over":               {header[:len(header)-1] + "_." + rest, "base64url"},
		"line break inside":            {header[:4] + "\n" + header[4:] + "." + rest, "line break"},
		"payload is not JSON":          {payload("secret"), "JSON object"},
		"payload is an array":          {payload(`["secret"]`), "JSON object"},
		"payload is null":              {payload("null"), `"exp"`},
		"no expiry":                    {payload(`{"aud":"a"}`), `"exp"`},
		"expiry is null":               {payload(`{"aud":"a","exp":null}`), `"exp"`},
		"expiry is a string":           {payload(`{"aud":"a","exp":"1800000000"}`), `"exp"`},
		"expiry is out of all bounds":  {payload(`{"aud":"a","exp":1e999}`), `"exp"`},
		"expiry is after 9999":         {payload(`{"aud":"a","exp":253402300800}`), "9999"},
		"expiry is before 1970":        {payload(`{"aud":"a","exp":-1}`), "1970"},
		"no audience":                  {payload(`{"exp":1800000000}`), `"aud"`},
		"audience is null":             {payload(`{"aud":null,"exp":1800000000}`), `"aud"`},
		"audience is an empty array":   {payload(`{"aud":[],"exp":1800000000}`), `"aud"`},
		"audience is a number":         {payload(`{"aud":1,"exp":1800000000}`), `"aud"`},
		"an audience is a number":      {payload(`{"aud":["a",1],"exp":1800000000}`), `"aud"`},
		"an audience is null":          {payload(`{"aud":["a",null],"exp":1800000000}`), `"aud"`},
		"not before is null":           {payload(`{"aud":"a","exp":1800000000,"nbf":null}`), `"nbf"`},
		"not before is a string":       {payload(`{"aud":"a","exp":1800000000,"nbf":"1"}`), `"nbf"`},
		"not before is after 9999":     {payload(`{"aud":"a","exp":1800000000,"nbf":1e300}`), "9999"},
		"only another spelling of exp": {payload(`{"aud":"a","Exp":1800000000}`), `"exp"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseJWT([]byte(test.compact))
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if !strings.Contains(err.Error(), test.reason) {
				t.Errorf("the error names not %q: %v", test.reason, err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
}

// What is accepted has three parts of base64url and an expiry that JSON and
// RFC 3339 can write; what is refused is not quoted in the error.
func FuzzParseJWT(f *testing.F) {
	for _, seed := range []string{
		"",
		"..",
		"a.b.c",
		"\n.\r.\n",
		tokentest.JWT(time.Unix(1800000000, 0), "a", "b"),
		tokentest.Encode("{}", `{"aud":"a","exp":1.5}`, "s"),
		tokentest.Encode("{}", `{"aud":"a","exp":1e400}`, "s"),
		tokentest.Encode("{}", `{"aud":[null],"exp":-0}`, "s"),
		tokentest.Encode("{}", strings.Repeat("[", 20000), "s"),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, compact []byte) {
		token, err := newToken(compact)
		if err != nil {
			if len(compact) > 8 && strings.Contains(err.Error(), string(compact)) {
				t.Errorf("the error quotes the token: %v", err)
			}
			return
		}
		parts := bytes.Split(token.JWT, []byte("."))
		if len(parts) != 3 {
			t.Fatalf("accepted with %d parts", len(parts))
		}
		for _, part := range parts {
			decoded, err := base64.RawURLEncoding.DecodeString(string(part))
			if err != nil || base64.RawURLEncoding.EncodeToString(decoded) != string(part) {
				t.Errorf("accepted with the part %q, which is not base64url", part)
			}
		}
		if seconds := token.expires.Unix(); seconds < 0 || seconds > latestDate {
			t.Errorf("accepted with an expiry at %d", seconds)
		}
		if len(token.audiences) == 0 {
			t.Error("accepted without an audience")
		}
		want := `{"token":"` + string(compact) + `","expirationTimestamp":"` + token.expires.Format(time.RFC3339) + "\"}\n"
		if string(token.JSON) != want {
			t.Errorf("got JSON %s, want %s", token.JSON, want)
		}
	})
}
