package rules

import (
	"testing"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) { podnet.Main(m) }
