package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestReference holds docs/cli.md to what the commands say of themselves.
// ROPEWAY_UPDATE_SCRIPTS=1 writes it anew, as it does the scripts.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "cli.md")
	want := reference(newRoot(environment{}))
	if os.Getenv("ROPEWAY_UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/cli.md is not what the commands say: ROPEWAY_UPDATE_SCRIPTS=1 go test -run TestReference ./cmd/ropeway writes it anew")
	}
}

// reference returns the page of all commands that are shown to a person.
func reference(root *cobra.Command) string {
	var page strings.Builder
	page.WriteString("# The command line\n\nWritten by a test of `cmd/ropeway` from the commands' own words: change them there.\n\n")
	fmt.Fprintf(&page, "Every command takes\n\n```text\n%s```\n", root.PersistentFlags().FlagUsages())
	for _, g := range root.Groups() {
		fmt.Fprintf(&page, "\n## %s\n", strings.TrimSuffix(g.Title, ":"))
		for _, cmd := range root.Commands() {
			if cmd.GroupID == g.ID {
				describe(&page, cmd)
			}
		}
	}
	return page.String()
}

// describe adds a command and those below it.
func describe(page *strings.Builder, cmd *cobra.Command) {
	if cmd.Hidden {
		return
	}
	text := strings.TrimSpace(cmd.Long)
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(page, "\n### %s\n\n%s\n", cmd.CommandPath(), text)
	if cmd.Runnable() {
		fmt.Fprintf(page, "\n```text\n%s\n", cmd.UseLine())
		if flags := cmd.NonInheritedFlags().FlagUsages(); flags != "" {
			fmt.Fprintf(page, "\n%s", flags)
		}
		page.WriteString("```\n")
	}
	if example := strings.Trim(cmd.Example, "\n"); example != "" {
		fmt.Fprintf(page, "\n```sh\n%s\n```\n", example)
	}
	for _, sub := range cmd.Commands() {
		describe(page, sub)
	}
}
