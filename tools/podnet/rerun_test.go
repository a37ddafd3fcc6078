package podnet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusedNamespacesComeWithARemedy(t *testing.T) {
	for _, c := range []struct{ file, value, want string }{
		{"kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"},
		{"user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"},
		{"user/max_net_namespaces", "0", "sudo sysctl -w user.max_net_namespaces=15000"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"kernel/apparmor_restrict_unprivileged_userns", "0", "--privileged"},
		{"user/max_user_namespaces", "15000", "--privileged"},
	} {
		settings := t.TempDir()
		path := filepath.Join(settings, c.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := remedy(settings); !strings.Contains(got, c.want) {
			t.Errorf("%s is %s: %s, want %s", c.file, c.value, got, c.want)
		}
	}
}

func TestUnusableTapDeviceComesWithARemedy(t *testing.T) {
	for err, want := range map[error]string{
		os.ErrPermission: "sudo chmod 0666 /dev/net/tun",
		os.ErrNotExist:   "sudo modprobe tun",
	} {
		if got := tunError(err); !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want %s", err, got, want)
		}
	}
}
