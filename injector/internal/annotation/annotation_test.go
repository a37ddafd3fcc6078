package annotation

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

func TestValues(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, test := range []struct {
		name    string
		allowed []string
		refused []string
	}{
		{Enabled,
			[]string{"true", "false"},
			[]string{"", "True", "TRUE", "1", "yes", "true "}},
		{RequireHeader,
			[]string{"true", "false"},
			[]string{"", "Metadata"}},
		{BridgeName,
			[]string{"k6t-eth0", "b", "exactly15bytes-", "..."},
			[]string{"", ".", "..", "sixteen-bytes-xx", "a/b", "a b", "a\tb", "a\nb", "vlan:1", "à"}},
		{TokenAudiences,
			[]string{"vault", "https://sts.example/a?b=c", " a , b ", "a,b,c,d,e,f,g,h", long},
			[]string{"", ",", "a,", "a,,b", "a,a", "a, a", "a b", "a\x00", "é", long + "a", "a,b,c,d,e,f,g,h,i"}},
		{TokenExpirationSeconds,
			[]string{"600", "3600", "4294967296"},
			[]string{"", "599", "4294967297", "1h", "600.0", "6e2", "+600", "-600", "0600", " 600", "99999999999999999999"}},
		{HopLimit,
			[]string{"1", "64", "255"},
			[]string{"", "0", "256", "-1", "01", "one"}},
	} {
		for _, value := range test.allowed {
			if problems := Problems(jsontree.Object{test.name: value}); problems != nil {
				t.Errorf("%s: %q is refused: %q", test.name, value, problems)
			}
		}
		for _, value := range test.refused {
			problems := Problems(jsontree.Object{test.name: value})
			if len(problems) != 1 || !strings.HasPrefix(problems[0], "annotation "+test.name+": "+Quote(value)+" is not allowed: want ") {
				t.Errorf("%s: %q: got %q", test.name, value, problems)
			}
		}
	}
}

func TestValuesThatAreNoStrings(t *testing.T) {
	for _, value := range []any{true, nil, json.Number("1"), []any{"true"}, jsontree.Object{"a": "b"}} {
		problems := Problems(jsontree.Object{Enabled: value})
		if len(problems) != 1 || !strings.HasSuffix(problems[0], "is not a string: write it in quotes") {
			t.Errorf("%v: got %q", value, problems)
		}
		if enabled, problem := IsEnabled(jsontree.Object{Enabled: value}); enabled || problem == "" {
			t.Errorf("%v: enabled %v, problem %q", value, enabled, problem)
		}
	}
}

func TestUnknownNamesGetTheNearest(t *testing.T) {
	for name, want := range map[string]string{
		"enable":                        Enabled,
		"Enabled":                       Enabled,
		"bridge":                        BridgeName,
		"audiences":                     TokenAudiences,
		"token-audience":                TokenAudiences,
		"token-expiration":              TokenExpirationSeconds,
		"token-expiry-seconds":          TokenExpirationSeconds,
		"header-required":               RequireHeader,
		"hoplimit":                      HopLimit,
		"ttl-limit":                     HopLimit,
		"":                              Enabled,
		strings.Repeat("enabled", 1000): TokenExpirationSeconds,
	} {
		problems := Problems(jsontree.Object{Prefix + name: "true"})
		if len(problems) != 1 || !strings.HasSuffix(problems[0], "is not known: the nearest known name is "+want) {
			t.Errorf("%.63s: got %q, want %s", name, problems, want)
		}
	}
}

func TestNamesOfOthersAreLeftAlone(t *testing.T) {
	others := jsontree.Object{
		"kubevirt.io/enabled":       "maybe",
		"imds.kubevirt.io":          "x",
		"ximds.kubevirt.io/enabled": "x",
		"IMDS.kubevirt.io/enabled":  "x",
	}
	if problems := Problems(others); problems != nil {
		t.Errorf("got %q", problems)
	}
}

func TestAnnotationsOfTheWebhook(t *testing.T) {
	own := jsontree.Object{Injected: "true", VMName: "web", VMIUID: "0", Enabled: "true", "example.org/a": "b"}
	if problems := Problems(own); len(problems) != 3 {
		t.Errorf("on a VM: got %q", problems)
	}
	users := WrittenByUser(own)
	if problems := Problems(users); problems != nil || len(users) != 1 {
		t.Errorf("on a pod: got %v with %q", users, problems)
	}
	if len(own) != 5 {
		t.Error("the annotations themselves were changed")
	}
}

func TestMessageIsBounded(t *testing.T) {
	annotations := jsontree.Object{}
	for _, letter := range "abcdefghijklmnopqrstuvwxyz" {
		annotations[Prefix+strings.Repeat(string(letter), 100_000)] = ""
		annotations[Enabled] = strings.Repeat("\x00", 100_000)
	}
	message := Join(Problems(annotations))
	if len(message) > 4096 || !strings.HasSuffix(message, "and 15 more") {
		t.Errorf("%d bytes: %s", len(message), message)
	}
}

func TestSettings(t *testing.T) {
	settings := ParseSettings(jsontree.Object{TokenAudiences: " b , a,c", TokenExpirationSeconds: "900"})
	if !slices.Equal(settings.TokenAudiences, []string{"b", "a", "c"}) || settings.TokenExpirationSeconds != "900" {
		t.Errorf("got %+v", settings)
	}
	if settings := ParseSettings(nil); settings.TokenAudiences != nil || settings.TokenExpirationSeconds != "" {
		t.Errorf("of nothing: got %+v", settings)
	}
}

func TestEditDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0},
		{"kitten", "sitting", 3}, {"hop", "shop", 1}, {"flaw", "lawn", 2},
	} {
		if got := editDistance(test.a, test.b); got != test.want {
			t.Errorf("from %q to %q: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
