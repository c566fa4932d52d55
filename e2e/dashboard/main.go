// dashboard reads a dashboard on standard input and holds it against Grafana's own schema. What is unknown there, of
// another type, missing or out of bounds is named on standard error, and the exit status is 1.
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
		// The schema's code also returns a list of no faults as an error.
		if fault != nil && fault.Error() != "" {
			fmt.Fprintln(os.Stderr, fault)
			status = 1
		}
	}
	os.Exit(status)
}
