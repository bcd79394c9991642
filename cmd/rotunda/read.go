package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newRead(c *cli) *cobra.Command {
	var field, version, out string
	cmd := c.client(&cobra.Command{
		Use:   "read PATH [--field NAME] [--out FILE]",
		Short: "Read a value from the built-in store",
		Long: `Read what the built-in store serves at a path: all fields as a JSON object, or one field as it
is. Each read is an event of the trail. A consumer has a token that may do nothing else:
token create NAME --role reader --path PATH.

The value goes to stdout, or with --out to a file that only you can read, which is replaced in one
go: a program that reads it sees the old value or the new one.`,
		Example: `  rotunda read orders/db --field password
  rotunda read orders/db --out /run/orders/db.json
  rotunda read orders/db --version previous`,
		Args:                  arguments("PATH"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	})
	f := cmd.Flags()
	f.StringVar(&field, "field", "", "only this field, as it is (default: all, as JSON)")
	f.StringVar(&version, "version", "", "current, previous or a version (default current)")
	f.StringVar(&out, "out", "", "file to write it to, with mode 0600 (default: stdout)")
	c.complete(cmd, "version", "current", "previous")
	_ = cmd.RegisterFlagCompletionFunc("field", cobra.NoFileCompletions)
	_ = cmd.MarkFlagFilename("out")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.stores.ReadSecret, &rotundav1.ReadSecretRequest{Path: args[0], Version: version}, "")
		if err != nil {
			return err
		}
		if c.output.value != "table" && field == "" && out == "" {
			return c.print(res, nil)
		}
		value, err := secretText(res, field)
		if err != nil {
			return err
		}
		if out == "" {
			return c.write(value)
		}
		if err := writePrivate(out, value); err != nil {
			return fmt.Errorf("write the value to %s: %w", out, err)
		}
		c.complain("version %s of %s is in %s", res.GetVersion(), args[0], out)
		return nil
	}
	return cmd
}

// secretText is one field with a line break, or all as a JSON object.
func secretText(res *rotundav1.ReadSecretResponse, field string) ([]byte, error) {
	if field != "" {
		v, ok := res.GetFields()[field]
		if !ok {
			return nil, fmt.Errorf("it has no field %q: there are %s", clipText(field), strings.Join(slices.Sorted(mapKeys(res.GetFields())), ", "))
		}
		return []byte(v + "\n"), nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(res.GetFields())
	return b.Bytes(), err
}

// writePrivate replaces a file in one go, readable by its owner only.
func writePrivate(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".rotunda-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when it was renamed
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
