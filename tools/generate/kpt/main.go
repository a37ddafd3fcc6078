// Command kpt is what the tests need of kpt: its commands pkg and fn. kpt's own main package cannot be had from
// every module proxy, as it also imports a module that has no release.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/kptdev/kpt/commands/fn"
	"github.com/kptdev/kpt/commands/pkg"
	"github.com/kptdev/kpt/pkg/printer"
	"github.com/spf13/cobra"
)

func main() {
	ctx := printer.WithContext(context.Background(), printer.New(os.Stdout, os.Stderr))
	command := &cobra.Command{Use: "kpt", SilenceUsage: true, SilenceErrors: true}
	command.AddCommand(fn.GetCommand(ctx, "kpt"), pkg.GetCommand(ctx, "kpt"))
	if err := command.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kpt:", err)
		os.Exit(1)
	}
}
