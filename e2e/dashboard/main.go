// dashboard reads a dashboard from standard input and validates it with Grafana's own schema. If a field is unknown,
// missing, of the wrong type or out of range, it prints an error for each, and exits with status 1.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	var read dashboard.Dashboard
	text, err := io.ReadAll(os.Stdin)
	faults := []error{err}
	if err == nil {
		faults = []error{read.UnmarshalJSONStrict(text), read.Validate()}
	}
	status := 0
	for _, fault := range faults {
		// The schema's code also returns an error for an empty list of faults.
		if fault != nil && fault.Error() != "" {
			fmt.Fprintln(os.Stderr, fault)
			status = 1
		}
	}
	os.Exit(status)
}
