// The second upstream of the benchmarks: the same MCP server as upstream.c, on Go's net/http.
//
//	make build/bench/upstream-go
//	build/bench/upstream-go PORT json|sse [BYTES]
//
// It answers each connection independently, as soon as its request has arrived. The server in C answers all requests of
// one iteration of its event loop together, in lockstep with the load, which favours a proxy that batches work.
// Arguments, methods and answers are those of upstream.c.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	mostBytes   = 64 << 20
	front       = `{"content":[{"type":"text","text":"`
	back        = `"}]}`
	initialized = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},` +
		`"serverInfo":{"name":"bench-upstream","version":"1.0.0"}}`
	tools = `{"tools":[{"name":"echo","description":"Answers with as many bytes as it is asked for.",` +
		`"inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}]}`
)

type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Arguments struct {
			Bytes *int  `json:"bytes"`
			SSE   *bool `json:"sse"`
			Steps int   `json:"steps"`
			Pause int   `json:"pause"`
		} `json:"arguments"`
		Meta struct {
			ProgressToken json.RawMessage `json:"progressToken"`
		} `json:"_meta"`
	} `json:"params"`
}

type upstream struct {
	sse   bool
	bytes int
	text  string
}

func (it upstream) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	switch request.Method {
	case http.MethodPost:
		it.post(answer, request)
	case http.MethodGet: // the stream of notifications, which stays empty
		startEvents(answer)
		http.NewResponseController(answer).Flush()
		<-request.Context().Done()
	case http.MethodDelete:
	default:
		answer.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (it upstream) post(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, mostBytes))
	var said message
	if err != nil || json.Unmarshal(body, &said) != nil || said.Method == "" {
		answer.WriteHeader(http.StatusBadRequest)
		return
	}
	if said.ID == nil {
		answer.WriteHeader(http.StatusAccepted)
		return
	}
	switch said.Method {
	case "tools/call":
		it.call(answer, said)
	case "initialize":
		answer.Header().Set("Mcp-Session-Id", "bench-session")
		respond(answer, it.sse, result(said.ID, initialized, "", ""))
	case "tools/list":
		respond(answer, it.sse, result(said.ID, tools, "", ""))
	case "ping":
		respond(answer, it.sse, result(said.ID, "{}", "", ""))
	default:
		respond(answer, false, `{"jsonrpc":"2.0","id":`, string(said.ID), `,"error":{"code":-32601,"message":"Unknown"}}`)
	}
}

func (it upstream) call(answer http.ResponseWriter, said message) {
	arguments := said.Params.Arguments
	size, sse := it.bytes, it.sse
	if arguments.Bytes != nil {
		size = min(*arguments.Bytes, mostBytes)
	}
	if arguments.SSE != nil {
		sse = *arguments.SSE
	}
	token := said.Params.Meta.ProgressToken
	if arguments.Steps > 0 && token != nil {
		sse = true
		progress(answer, arguments.Steps, time.Duration(arguments.Pause)*time.Millisecond, token)
	}
	frame := len(result(said.ID, front, "", back))
	respond(answer, sse, result(said.ID, front, it.text[:max(0, size-frame)], back))
}

// progress sends the progress notifications, with a pause before each.
func progress(answer http.ResponseWriter, steps int, pause time.Duration, token json.RawMessage) {
	startEvents(answer)
	http.NewResponseController(answer).Flush()
	for step := 1; step <= steps; step++ {
		time.Sleep(pause)
		fmt.Fprintf(answer, "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\","+
			"\"params\":{\"progressToken\":%s,\"progress\":%d}}\n\n", token, step)
		http.NewResponseController(answer).Flush()
	}
	time.Sleep(pause)
}

func startEvents(answer http.ResponseWriter) {
	answer.Header().Set("Content-Type", "text/event-stream")
	answer.Header().Set("Cache-Control", "no-cache")
}

func result(id json.RawMessage, front, text, back string) string {
	return strings.Join([]string{`{"jsonrpc":"2.0","id":`, string(id), `,"result":`, front, text, back, "}"}, "")
}

// respond sends a complete JSON-RPC message, as one event or as JSON.
func respond(answer http.ResponseWriter, asEvent bool, parts ...string) {
	if asEvent {
		startEvents(answer)
		parts = append(append([]string{"event: message\ndata: "}, parts...), "\n\n")
		defer http.NewResponseController(answer).Flush()
	} else {
		length := 0
		for _, part := range parts {
			length += len(part)
		}
		answer.Header().Set("Content-Type", "application/json")
		answer.Header().Set("Content-Length", strconv.Itoa(length))
	}
	for _, part := range parts {
		io.WriteString(answer, part)
	}
}

func main() {
	if len(os.Args) < 3 || (os.Args[2] != "json" && os.Args[2] != "sse") {
		fmt.Fprintf(os.Stderr, "usage: %s PORT json|sse [BYTES]\n", os.Args[0])
		os.Exit(2)
	}
	it := upstream{sse: os.Args[2] == "sse", bytes: 200, text: strings.Repeat("x", mostBytes)}
	if len(os.Args) > 3 {
		it.bytes, _ = strconv.Atoi(os.Args[3])
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err == nil {
		err = http.Serve(listener, it)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
