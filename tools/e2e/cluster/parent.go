package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// Repository is the folder of the module whose tests this module is: the one two folders up.
func Repository(ctx context.Context) (string, error) {
	source, err := sourceFolder(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(source, "../.."), nil
}

// RunGo calls the go command in a folder, as Compile does, and returns what it said when it fails.
func RunGo(ctx context.Context, folder string, args ...string) error {
	if output, err := goCommand(ctx, folder, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}
