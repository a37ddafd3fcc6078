package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// change is one operation of a JSON patch, RFC 6902, with its value in short.
type change struct {
	Operation string `json:"op"`
	Path      string `json:"path"`
	Value     string `json:"value"`
}

func (c change) String() string {
	return fmt.Sprintf("%-7s %s: %s", c.Operation, strings.ReplaceAll(c.Path, "~1", "/"), c.Value)
}

func readChanges(patch []byte) ([]change, error) {
	var operations []struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	if err := json.Unmarshal(patch, &operations); err != nil {
		return nil, err
	}
	var changes []change
	for _, o := range operations {
		changes = append(changes, change{o.Op, o.Path, inShort(o.Value)})
	}
	return changes, nil
}

// inShort names an object by its name where it has one, and shows the rest.
func inShort(value any) string {
	switch v := value.(type) {
	case map[string]any:
		if name, ok := v["name"].(string); ok {
			if setting, ok := v["value"].(string); ok {
				return name + "=" + setting
			}
			return name
		}
		var fields []string
		for key, field := range v {
			fields = append(fields, key+": "+inShort(field))
		}
		slices.Sort(fields)
		return strings.Join(fields, ", ")
	case []any:
		var items []string
		for _, item := range v {
			items = append(items, inShort(item))
		}
		return strings.Join(items, ", ")
	case string:
		return v
	}
	return fmt.Sprint(value)
}
