// Command agent runs inside the tests' guest and does what a test tells it by the virtio serial port guestagent.Port.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/guestagent"
)

func main() {
	if err := run("/sys/class/virtio-ports", "/dev"); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// run serves the port until it is gone.
func run(ports, devices string) error {
	device, err := findPort(ports)
	if err != nil {
		return err
	}
	port, err := os.OpenFile(filepath.Join(devices, device), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	return guestagent.Serve(port, guestagent.Operations{
		Run: runCommand, Get: get, NAT: nat, Ask: ask, Send: send, Sniff: sniff, Hold: hold,
	})
}

// findPort finds the device of the port by its name.
func findPort(folder string) (device string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		name, err := os.ReadFile(filepath.Join(folder, entry.Name(), "name"))
		if err == nil && strings.TrimSpace(string(name)) == guestagent.Port {
			return entry.Name(), nil
		}
	}
	return "", fmt.Errorf("no port in %s has the name %s", folder, guestagent.Port)
}

// commandLimit is how long a shell command may take that says nothing else.
const commandLimit = 30 * time.Second

// runCommand runs a shell command and kills it, and what it started, at its limit.
func runCommand(r guestagent.Run) (guestagent.Ran, error) {
	limit := r.Limit
	if limit == 0 {
		limit = commandLimit
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, "/bin/sh", "-c", r.Command)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	// What goes on in the background keeps the output open.
	command.WaitDelay = 100 * time.Millisecond
	output, err := command.CombinedOutput()
	if command.ProcessState == nil {
		return guestagent.Ran{}, err
	}
	exit := command.ProcessState.ExitCode()
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && ctx.Err() == nil {
		exit = 128 + int(status.Signal()) // as the shell has it
	}
	return guestagent.Ran{Exit: exit, Output: string(output)}, nil
}

// nat makes the table that nft would make of
//
//	table ip guest {
//		chain postrouting { type nat hook postrouting priority 100; oifname "eth0" masquerade; }
//	}
func nat(n guestagent.NAT) (any, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table := conn.AddTable(&nftables.Table{Name: "guest", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, n.Interface)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	return nil, conn.Flush()
}
