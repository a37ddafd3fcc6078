package rules

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) { podnet.Main(m) }

// A kernel with nfnetlink but without nf_tables answers for nf_tables as every
// kernel does for subsystem 0, which does not exist.
func TestMissingSubsystemIsUnsupported(t *testing.T) {
	podnet.Require(t)
	_, err := ask(unix.NFNL_SUBSYS_NONE, unix.NFT_MSG_GETGEN, unix.NFT_MSG_NEWGEN)
	if err := explain(err); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, want %v", err, ErrUnsupported)
	}
}

// Without a module of nf_tables the kernel has an error for each rule.
func TestManyErrorsAreExplainedOnce(t *testing.T) {
	once, often := explain(unix.ENOENT), explain(fmt.Errorf("receive: %w", errors.Join(unix.ENOENT, unix.ENOENT)))
	if often.Error() != once.Error() {
		t.Errorf("%q, want %q", often, once)
	}
}
