// Runs behaviours, whose names it reads from standard input, on the Go SDK's client; see driver.py.
// usage: interop URL TOKEN
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	large  = 200_000
	atOnce = 20
)

type withToken string

func (token withToken) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+string(token))
	return http.DefaultTransport.RoundTrip(request)
}

type client struct {
	session *mcp.ClientSession
	steps   chan float64
}

type arguments = map[string]any

func (c *client) call(ctx context.Context, tool string, given arguments, token any) (string, error) {
	params := &mcp.CallToolParams{Name: tool, Arguments: given}
	if token != nil {
		params.SetProgressToken(token)
	}
	result, err := c.session.CallTool(ctx, params)
	if err != nil {
		return "", err
	}
	text, ok := result.Content[0].(*mcp.TextContent)
	if !ok || result.IsError {
		return "", errors.New("the tool failed")
	}
	return text.Text, nil
}

func (c *client) expect(ctx context.Context, expected, tool string, given arguments) error {
	text, err := c.call(ctx, tool, given, nil)
	if err == nil && text != expected {
		err = errors.New("another answer")
	}
	return err
}

func (c *client) called(ctx context.Context) error {
	return c.expect(ctx, "This is a simple text response for testing.", "test_simple_text", arguments{})
}

func (c *client) listed(ctx context.Context) error {
	tools, err := c.session.ListTools(ctx, nil)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(tools.Tools, func(tool *mcp.Tool) bool { return tool.Name == "test_simple_text" }) {
		return errors.New("the tool is not listed")
	}
	return nil
}

func (c *client) progressed(ctx context.Context) error {
	if _, err := c.call(ctx, "wait", arguments{"name": "progress", "steps": 3}, "mine"); err != nil {
		return err
	}
	for last := -1.0; last < 2; {
		select {
		case step := <-c.steps:
			if step <= last {
				return errors.New("the steps came out of order")
			}
			last = step
		case <-time.After(5 * time.Second):
			return errors.New("the steps did not come")
		}
	}
	return nil
}

func (c *client) cancelled(ctx context.Context) error {
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	for len(c.steps) > 0 {
		<-c.steps
	}
	go func() {
		_, err := c.call(running, "wait", arguments{"name": "cancel", "steps": 300}, "cancel")
		ended <- err
	}()
	<-c.steps
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		return fmt.Errorf("it was not cancelled: %w", err)
	}
	for range 50 {
		text, err := c.call(ctx, "waits", arguments{}, nil)
		if err != nil {
			return err
		}
		states := map[string]string{}
		if err := json.Unmarshal([]byte(text), &states); err != nil {
			return err
		}
		if states["cancel"] == "cancelled" {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the server never learnt of it")
}

func (c *client) gotLarge(ctx context.Context) error {
	return c.expect(ctx, strings.Repeat("x", large), "large", arguments{"characters": large})
}

func (c *client) calledAtOnce(ctx context.Context) error {
	failures := make([]error, atOnce)
	var calls sync.WaitGroup
	for number := range atOnce {
		calls.Go(func() {
			name := fmt.Sprintf("call-%d", number)
			failures[number] = c.expect(ctx, name, "wait", arguments{"name": name, "steps": 1})
		})
	}
	calls.Wait()
	return errors.Join(failures...)
}

func run(url, token string) error {
	steps := make(chan float64, 1000)
	options := &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, request *mcp.ProgressNotificationClientRequest) {
			steps <- request.Params.Progress
		},
	}
	transport := &mcp.StreamableClientTransport{
		Endpoint:   url,
		HTTPClient: &http.Client{Transport: withToken(token)},
	}
	implementation := &mcp.Implementation{Name: "interop", Version: "1.0.0"}
	session, err := mcp.NewClient(implementation, options).Connect(context.Background(), transport, nil)
	if err != nil {
		return err
	}
	c := &client{session, steps}
	behaviours := map[string]func(context.Context) error{
		"connect": c.called, "list": c.listed, "call": c.called, "progress": c.progressed,
		"cancel": c.cancelled, "200 kB": c.gotLarge, "20 at once": c.calledAtOnce,
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := behaviours[lines.Text()](ctx); err != nil {
			fmt.Println("failed", strings.Join(strings.Fields(err.Error()), " "))
		} else {
			fmt.Println("ok")
		}
		cancel()
	}
	return session.Close()
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
