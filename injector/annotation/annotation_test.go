package annotation

import (
	"slices"
	"strings"
	"testing"
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
		{Network,
			[]string{"default", "a network", strings.Repeat("n", 63)},
			[]string{"", "a\x00", strings.Repeat("n", 64)}},
		{BridgeName,
			[]string{"k6t-eth0", "b", "exactly15bytes-", "..."},
			[]string{"", ".", "..", "sixteen-bytes-xx", "a/b", "a b", "a\tb", "a\nb", "a\x00b", "\x1b[0m", "a\x7f", "vlan:1", "à"}},
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
			if problem := Problem(test.name, Value{Text: value}); problem != "" {
				t.Errorf("%s: %q is refused: %q", test.name, value, problem)
			}
		}
		for _, value := range test.refused {
			if problem := Problem(test.name, Value{Text: value}); !strings.HasPrefix(problem, "annotation "+test.name+": "+Quote(value)+" is not allowed: want ") {
				t.Errorf("%s: %q: got %q", test.name, value, problem)
			}
		}
	}
}

func TestValuesThatAreNoStrings(t *testing.T) {
	for _, value := range []string{"true", "null", "1", `["true"]`, `{"a":"b"}`} {
		problem := Problem(Enabled, Value{Text: value, NotText: true})
		if problem != "annotation "+Enabled+": "+value+" is not a string: write it in quotes" {
			t.Errorf("%s: got %q", value, problem)
		}
	}
	if got := (Value{Text: `{"a":"` + "\u202e" + strings.Repeat("x", 100), NotText: true}).String(); got != `{"a":"\u202e`+strings.Repeat("x", 54)+"..." {
		t.Errorf("long, and with a mark that turns a terminal's line: %s", got)
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
		"token-seconds":                 TokenExpirationSeconds,
		"header":                        RequireHeader,
		"nettwork":                      Network,
		"netwrok":                       Network,
		"hopp-limit":                    HopLimit,
		"audience":                      TokenAudiences,
		"enbaled":                       Enabled,
		strings.Repeat("enabled", 1000): Enabled,
	} {
		problem := Problem(Prefix+name, Value{Text: "true"})
		if !strings.HasSuffix(problem, "is not known: the nearest known name is "+want) {
			t.Errorf("%.63s: got %q, want %s", name, problem, want)
		}
	}
}

func TestAnnotationsOfTheWebhook(t *testing.T) {
	for _, name := range append(OnPod(), RedirectPort) {
		if problem := Problem(name, Value{Text: "x"}); problem != "annotation "+name+" is written by the webhook: remove it" {
			t.Errorf("%s: got %q", name, problem)
		}
	}
	for value, want := range map[string]bool{"1024": true, "60080": true, "65535": true, "80": false, "65536": false, "": false, "60080\n": false} {
		if got := IsRedirectPort(Value{Text: value}); got != want {
			t.Errorf("port %q: %v", value, got)
		}
	}
}

func TestWhatProtectsIsTakenAsItsStrictest(t *testing.T) {
	for _, name := range ByUser() {
		strictest := Strictest(name)
		if protects := name == RequireHeader || name == HopLimit; protects != (strictest != "") {
			t.Errorf("%s: %q", name, strictest)
		}
		if strictest != "" && Problem(name, Value{Text: strictest}) != "" {
			t.Errorf("%s: %q is not allowed itself", name, strictest)
		}
	}
}

func TestNamesAreWrittenOnce(t *testing.T) {
	names := All()
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Errorf("a name stands twice: %q", names)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, Prefix) && !strings.HasPrefix(name, VerdictPrefix) {
			t.Errorf("%s has no prefix of ours", name)
		}
	}
}

func TestAudiences(t *testing.T) {
	if got := Audiences(" b , a,c"); !slices.Equal(got, []string{"b", "a", "c"}) {
		t.Errorf("got %q", got)
	}
}
