// Package report says what state a cluster's pod network is in: per node
// (Status), per destination (Plan), and what is wrong with it and what to do
// (Doctor). It computes from objects that others have read; it does no I/O
// but to the writer that a table is written to.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

// Format is how a report is written, by kubectl's names.
type Format string

// The formats.
const (
	Table Format = ""
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// ParseFormat reads the value of -o.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Table, Wide, JSON, YAML:
		return f, nil
	case "table":
		return Table, nil
	}
	return "", fmt.Errorf("-o %s: want json, yaml, wide, or nothing for a table", s)
}

// Write writes v as JSON or YAML, or, for the other formats, as its table.
func Write(w io.Writer, format Format, v any, table func(w io.Writer, wide bool) error) error {
	switch format {
	case JSON:
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("write as JSON: %w", err)
		}
		_, err = fmt.Fprintf(w, "%s\n", text)
		return err
	case YAML:
		text, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("write as YAML: %w", err)
		}
		_, err = w.Write(text)
		return err
	}
	return table(w, format == Wide)
}

// columns writes rows under a head, aligned.
func columns(w io.Writer, head []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = orDash(strings.ReplaceAll(cell, "\t", " "))
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
