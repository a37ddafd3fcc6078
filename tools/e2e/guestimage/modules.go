package guestimage

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// moduleName is the kernel's own name of a module, which has no dash.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// dependencies reads from a module's file which others must be loaded before it. The file modules.dep would say
// it too, but is made where a kernel is installed.
func dependencies(file string) ([]string, error) {
	object, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	defer object.Close()
	section := object.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s: no section .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	return parseDependencies(info), nil
}

// parseDependencies reads the field depends of a section .modinfo: strings of the form name=value, each with a
// zero byte at its end.
func parseDependencies(info []byte) []string {
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(moduleName(list), ",")
		}
	}
	return nil
}

// loadOrder returns modules with all that they depend on, each after what it depends on.
func loadOrder(modules []string, dependencies func(module string) ([]string, error)) ([]string, error) {
	var order []string
	for _, module := range modules {
		if slices.Contains(order, module) {
			continue
		}
		before, err := dependencies(module)
		if err != nil {
			return nil, err
		}
		// The kernel's modules make no circles: it could not load them.
		needed, err := loadOrder(before, dependencies)
		if err != nil {
			return nil, err
		}
		for _, m := range append(needed, module) {
			if !slices.Contains(order, m) {
				order = append(order, m)
			}
		}
	}
	return order, nil
}
