// Package vmtest is what tests with real guests need: a VM's pod, whose network is wired as KubeVirt does it, with
// the project's own sidecars in it as the kubelet starts them, and a guest that boots in it.
//
// Most tests begin with [Environment.Start]. One that has to do something in between calls the steps of a VM's life
// itself, in this order:
//
//	vm := e.New(t, vmtest.Options{})  // the pod, with the interface that the CNI plugin made
//	vm.StartSidecars()               // imds-init and imds-server
//	vm.Wire()                        // virt-handler: bridge, tap, DHCP server
//	vm.Boot()                        // virt-launcher: QEMU
//	vm.Configure("eth0")             // the guest's own DHCP client
//
// All steps fail the test when they fail. At its end everything is gone, and the test has failed if anything of
// the project's was seen on the pod's uplink.
package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/rootfs"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// programs are the sidecars, and the packages of this project that they are built from.
var programs = map[string]string{"imds-init": "./netsetup", "imds-server": "./server"}

// Environment is what all tests of a run share.
type Environment struct {
	folder     string // for the programs, the image and the tokens
	image      rootfs.Image
	repository string
}

// available says what keeps this process from having guests here; nil if nothing does.
func available() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("uid %d cannot start the sidecars as the kubelet does: run this command as root", uid)
	}
	if !podnet.RealTaps() {
		return errors.New("no /dev/net/tun, without which QEMU has no tap: load the driver with 'modprobe tun'; in a container, pass the device in")
	}
	errs := []error{podnet.Available(), qemu.Available()}
	for program, debianPackage := range map[string]string{
		"ip": "iproute2", "bridge": "iproute2", "nft": "nftables", "passt": "passt",
	} {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, fmt.Errorf("missing program %s; on Debian: apt-get install --no-install-recommends %s", program, debianPackage))
		}
	}
	return errors.Join(errs...)
}

// Open builds the sidecars and the guest's image. messages says what takes long.
func Open(ctx context.Context, messages io.Writer) (*Environment, error) {
	// su without a dash leaves the administrator's folders out.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	if err := available(); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "guests-")
	if err != nil {
		return nil, err
	}
	e := &Environment{folder: folder}
	if err := e.build(ctx, messages); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Environment) build(ctx context.Context, messages io.Writer) error {
	// The users of the sidecars find their program and their token in it.
	if err := os.Chmod(e.folder, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(e.sidecars(), 0o755); err != nil {
		return err
	}
	var err error
	if e.repository, err = cluster.Repository(ctx); err != nil {
		return err
	}
	for name, folder := range programs {
		fmt.Fprintf(messages, "building %s\n", name)
		err := cluster.RunGo(ctx, e.repository, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", e.Program(name), folder)
		if err != nil {
			return err
		}
	}
	e.image, err = rootfs.Make(ctx, e.folder, messages)
	return err
}

// Image is the guest's.
func (e *Environment) Image() rootfs.Image { return e.image }

// Folder is for what is made for a run, and goes with it.
func (e *Environment) Folder() string { return e.folder }

// Program is the file of a sidecar's program, by its name.
func (e *Environment) Program(name string) string { return filepath.Join(e.sidecars(), name) }

// sidecars is the folder with the files of the sidecars' image.
func (e *Environment) sidecars() string { return filepath.Join(e.folder, "sidecars") }

// Close removes what Open has made, but the cache.
func (e *Environment) Close() error { return os.RemoveAll(e.folder) }

// Check ends a test if there is an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Sidecar is one of the project's containers, as the kubelet runs it.
type Sidecar = kubelet.Sidecar
