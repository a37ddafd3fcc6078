package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) { podnet.Main(m) }

// inNamespace runs a test in a network namespace of its own.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	podnet.Require(t)
	n, err := podnet.NewNamespace("rules")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Do(func() error { f(t); return nil }); err != nil {
		t.Fatal(err)
	}
}

// The kernel that runs the tests has all pieces, whatever somebody has made of our
// tables, and to try them leaves nothing.
func TestTryingThePiecesLeavesNothing(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		s := new(sockets)
		defer s.close()
		const dormant = 1 // NFT_TABLE_F_DORMANT of include/uapi/linux/netfilter/nf_tables.h
		b := &batch{table: tableName}
		for _, family := range []byte{familyBridge, familyIPv4, familyIPv6, familyARP, familyNetdev} {
			b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, text(unix.NFTA_TABLE_NAME, tableName), number(unix.NFTA_TABLE_FLAGS, dormant))
		}
		if err := b.commit(s); err != nil {
			t.Fatal(err)
		}
		before, err := s.generation()
		if err != nil {
			t.Fatal(err)
		}
		for _, piece := range Pieces {
			if err := piece.Try(); err != nil {
				t.Errorf("%s: %v; %s", piece.Name, err, piece.Remedy)
			}
		}
		if node, err := Probe(false); err != nil || !node.IPv6 || !node.Refuses || !node.Leads || !node.Sockets || node.Missing != nil {
			t.Errorf("%+v, %v", node, err)
		}
		if after, err := s.generation(); err != nil || after != before {
			t.Errorf("generation %d, before %d, %v: something was changed", after, before, err)
		}
	})
}

// Where a piece is missing that a guest needs, the error names it and the remedy; where
// only some guests miss it, the others are served.
func TestMissingPieces(t *testing.T) {
	all := Pieces
	defer func() { Pieces = all }()
	for i, piece := range all {
		for _, passt := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, passt %t", piece.Name, passt), func(t *testing.T) {
				inNamespace(t, func(t *testing.T) {
					Pieces = append([]Piece(nil), all...)
					// A family that no kernel has, as one has none that was built without it.
					Pieces[i].add = try(unusedFamily, 0, accept)
					node, err := Probe(passt)
					needed := piece.Needed && !passt || piece.NeededForPasst && passt
					if missing := (MissingError{}); needed != errors.As(err, &missing) {
						t.Fatalf("%v, needed %t", err, needed)
					}
					if needed {
						if text := err.Error(); !strings.Contains(text, piece.Name) || !strings.Contains(text, piece.Remedy) || strings.Contains(text, "\n") {
							t.Errorf("%q does not name %q and %q in one line", text, piece.Name, piece.Remedy)
						}
						return
					}
					if piece.has != nil && (*piece.has(&node) || len(node.Missing) != 1 || !strings.Contains(node.Missing[0].Error(), piece.Remedy)) {
						t.Errorf("%+v: it is not said to be missing", node)
					}
					var table = Table{Node: node}
					w := wiring.Wiring{Bridge: wiring.Link{Name: "k6t-eth0"}, Guests: []wiring.Link{{Name: "tap0"}}}
					if passt {
						w = wiring.Redirect(60080)
					}
					if _, err := table.Install(w); err != nil {
						t.Errorf("the rules without it: %v", err)
					}
				})
			})
		}
	}
}

// unusedFamily is 4 of include/uapi/linux/netfilter.h, which nothing has.
const unusedFamily = 4

// SELinux and a missing capability are told apart from a missing piece.
func TestForbiddenIsNotMissing(t *testing.T) {
	for _, err := range []error{unix.EACCES, unix.EPERM, fmt.Errorf("open: %w", fs.ErrPermission)} {
		if text := (MissingError{Pieces[0], err}).Error(); !strings.Contains(text, "SELinux") || !strings.Contains(text, "NET_ADMIN") || strings.Contains(text, "modprobe") {
			t.Errorf("%v: %q", err, text)
		}
	}
}

// What is no lack of the kernel's is not taken for one.
func TestTroubleIsNotMissing(t *testing.T) {
	for _, err := range []error{unix.ENOMEM, unix.EMFILE, unix.ENOBUFS} {
		if text := (MissingError{Pieces[0], err}).Error(); !strings.Contains(text, "cannot be used now: "+err.Error()) || strings.Contains(text, "modprobe") {
			t.Errorf("%q", text)
		}
	}
}

// A thousand attempts that fail leave no descriptor and no goroutine.
func TestFailedAttemptsLeaveNothing(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		count := func() (descriptors, goroutines int) {
			entries, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(entries), runtime.NumGoroutine()
		}
		table := Table{Node: Node{IPv6: true}}
		w := wiring.Wiring{Bridge: wiring.Link{Name: "a name that no interface can have"}, Guests: []wiring.Link{{Name: "tap0"}}, OtherPorts: []string{"tap0"}}
		fails := func() {
			b := &batch{table: tableName}
			b.addRule(chain{family: familyBridge, name: "of no table"}, to("", accept))
			s := new(sockets)
			defer s.close()
			if err := b.commit(s); !errors.Is(err, unix.ENOENT) {
				t.Fatalf("%v, want %v", err, unix.ENOENT)
			}
			Pieces[0].Try()
			if _, err := table.Install(w); err != nil {
				t.Fatal(err)
			}
			table.Release()
		}
		fails()
		descriptors, goroutines := count()
		for range 1000 {
			fails()
		}
		if d, g := count(); d > descriptors || g > goroutines {
			t.Errorf("%d descriptors and %d goroutines, before %d and %d", d, g, descriptors, goroutines)
		}
	})
}

// The answer to a transaction does not grow with the rules: the least buffer that a
// socket can have holds it, also where all rules are wrong.
func TestTransactionNeedsNoBuffer(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		least := receiveBuffer
		receiveBuffer = 1 // the kernel makes it the least that there is
		defer func() { receiveBuffer = least }()
		w := wiring.Wiring{Bridge: wiring.Link{Name: "k6t-eth0"}}
		for i := range 40 {
			w.Guests = append(w.Guests, wiring.Link{Name: fmt.Sprint("tap", i)})
			w.OtherPorts = append(w.OtherPorts, fmt.Sprint("port", i))
		}
		table := Table{Node: Node{IPv6: true, Refuses: true, Leads: true}}
		defer table.Release()
		if _, err := table.Install(w); err != nil {
			t.Fatal(err)
		}
		b := &batch{table: tableName}
		for range 100 {
			b.addRule(chain{family: familyBridge, name: "of no table"}, to("", accept))
		}
		if err := b.commit(&table.sockets); err == nil {
			t.Error("a hundred wrong rules were accepted")
		}
	})
}
