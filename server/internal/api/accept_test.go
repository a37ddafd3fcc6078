package api

import "testing"

func TestPreferredMedia(t *testing.T) {
	tests := map[string]struct {
		accept []string
		want   string
	}{
		"no header":                  {nil, mediaJSON},
		"empty":                      {[]string{""}, mediaJSON},
		"curl":                       {[]string{"*/*"}, mediaJSON},
		"JSON":                       {[]string{"application/json"}, mediaJSON},
		"JWT":                        {[]string{"application/jwt"}, mediaJWT},
		"text":                       {[]string{"text/plain"}, mediaText},
		"capitals":                   {[]string{"Application/JWT"}, mediaJWT},
		"with a parameter":           {[]string{"text/plain; charset=utf-8"}, mediaText},
		"JWT, else anything":         {[]string{"application/jwt, */*"}, mediaJWT},
		"JWT, else anything by q":    {[]string{"application/jwt, */*;q=0.8"}, mediaJWT},
		"axios":                      {[]string{"application/json, text/plain, */*"}, mediaJSON},
		"Java":                       {[]string{"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"}, mediaJSON},
		"browser":                    {[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, mediaJSON},
		"q decides":                  {[]string{"application/json;q=0.5, application/jwt;q=0.6, text/plain;q=0.4"}, mediaJWT},
		"equal q: the server's":      {[]string{"text/plain, application/jwt"}, mediaJWT},
		"any text":                   {[]string{"text/*"}, mediaText},
		"any application":            {[]string{"application/*"}, mediaJSON},
		"anything but JSON":          {[]string{"application/json;q=0, */*"}, mediaJWT},
		"anything but application":   {[]string{"application/*;q=0, */*"}, mediaText},
		"two lines":                  {[]string{"application/json;q=0.1", "text/plain"}, mediaText},
		"nothing of ours":            {[]string{"image/png"}, mediaJSON},
		"nothing at all":             {[]string{"*/*;q=0"}, mediaJSON},
		"malformed q counts as 0":    {[]string{"text/plain;q=x, application/jwt;q=0.1"}, mediaJWT},
		"q out of bounds":            {[]string{"text/plain;q=2, application/jwt;q=0.1"}, mediaJWT},
		"q is not a number":          {[]string{"text/plain;q=NaN, application/jwt;q=0.1"}, mediaJWT},
		"q after a parameter":        {[]string{"text/plain;charset=utf-8;Q=0, application/jwt;q=0.1"}, mediaJWT},
		"a type that begins like it": {[]string{"application/jwtx, text/plainx"}, mediaJSON},
		"commas and semicolons":      {[]string{",;,;;q=,"}, mediaJSON},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := preferredMedia(test.accept); got != test.want {
				t.Errorf("Accept %q: got %s, want %s", test.accept, got, test.want)
			}
		})
	}
}
