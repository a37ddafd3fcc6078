package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"

	"github.com/example/kubevirt-imds/netsetup/internal/rules"
)

// check prints what the kernel has and lacks, a line each, with what it is for and how
// to get it. The status tells whether every guest can be served.
func check(out io.Writer) (status int) {
	if err := rules.Pieces[0].Try(); errors.Is(err, fs.ErrPermission) {
		fmt.Fprintln(out, rules.MissingError{Piece: rules.Pieces[0], Err: err})
		return exitFailed
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, piece := range rules.Pieces {
		switch err := piece.Try(); {
		case err == nil:
			fmt.Fprintf(table, "ok\t%s\tfor %s\t\n", piece.Name, piece.For)
		case piece.Needed || piece.NeededForPasst:
			status = exitFailed
			fmt.Fprintf(table, "MISSING\t%s\tfor %s\t%v; %s\n", piece.Name, piece.For, err, piece.Remedy)
		default:
			fmt.Fprintf(table, "missing\t%s\tfor %s\t%v; %s\n", piece.Name, piece.For, err, piece.Remedy)
		}
	}
	const entering = "entering another network namespace\tfor the node agent (imds-init agent) alone\t"
	if err := mayEnter(); err == nil {
		fmt.Fprintf(table, "ok\t%s\n", entering)
	} else {
		fmt.Fprintf(table, "missing\t%s%v; give it the capability SYS_ADMIN\n", entering, err)
	}
	table.Flush()
	return status
}
