// MCP over HTTP with the same status codes as the HTTP server of Vestige 2.2.0.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const maxBody = 256 << 10

type session struct {
	version    string
	connection mcp.Connection
	turn       sync.Mutex // Held by a request of the session while it runs: they run one after another.
}

type native struct {
	token    string
	server   *mcp.Server
	lock     sync.Mutex
	sessions map[string]*session
}

var (
	escapedBackslash = regexp.MustCompile(`\\\\`)
	surrogatePair    = regexp.MustCompile(`(?i)\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`)
	surrogate        = regexp.MustCompile(`(?i)\\ud[89a-f][0-9a-f]{2}`)
)

func hasLoneSurrogate(body []byte) bool {
	rest := surrogatePair.ReplaceAll(escapedBackslash.ReplaceAll(body, nil), nil)
	return surrogate.Match(rest)
}

func text(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, sentence)
}

func (n *native) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	shown := r.Header.Get("Authorization")
	switch {
	case r.URL.Path != "/mcp":
		w.WriteHeader(http.StatusNotFound)
	case shown == "":
		text(w, http.StatusUnauthorized, "Missing Authorization header")
	case subtle.ConstantTimeCompare([]byte(shown), []byte("Bearer "+n.token)) != 1:
		text(w, http.StatusForbidden, "Invalid auth token")
	case r.Method == http.MethodDelete:
		if held := n.find(w, r); held != nil {
			n.lock.Lock()
			delete(n.sessions, r.Header.Get("Mcp-Session-Id"))
			n.lock.Unlock()
			_ = held.connection.Close()
			text(w, http.StatusOK, "Session deleted")
		}
	case r.Method == http.MethodPost:
		n.post(w, r)
	default:
		w.Header().Set("Allow", "POST,DELETE")
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (n *native) post(w http.ResponseWriter, r *http.Request) {
	accept := r.Header.Get("Accept")
	if !strings.Contains(accept, "application/json") || !strings.Contains(accept, "text/event-stream") {
		text(w, http.StatusNotAcceptable, "Client must accept both application/json and text/event-stream")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		text(w, http.StatusRequestEntityTooLarge, "Failed to buffer the request body: length limit exceeded")
		return
	}
	if !json.Valid(body) || hasLoneSurrogate(body) {
		text(w, http.StatusBadRequest, "Failed to parse the request body as JSON: expected value")
		return
	}
	var shape struct {
		Method *string
		Params json.RawMessage
	}
	params := func() []byte { return bytes.TrimSpace(shape.Params) }
	if json.Unmarshal(body, &shape) != nil || shape.Method == nil || (len(params()) > 0 && params()[0] != '{') {
		text(w, http.StatusUnprocessableEntity, "Failed to deserialize the JSON body into the target type")
		return
	}
	message, err := jsonrpc.DecodeMessage(body)
	if err != nil {
		text(w, http.StatusUnprocessableEntity, "Failed to deserialize the JSON body into the target type: "+err.Error())
		return
	}
	if *shape.Method == "initialize" {
		n.initialize(w, message)
		return
	}
	held := n.find(w, r)
	if held == nil {
		return
	}
	switch version := r.Header.Get("MCP-Protocol-Version"); version {
	case held.version:
	case "":
		text(w, http.StatusBadRequest, "MCP-Protocol-Version header required")
		return
	default:
		text(w, http.StatusBadRequest, "MCP-Protocol-Version mismatch")
		return
	}
	held.turn.Lock()
	defer held.turn.Unlock()
	answer(w, held, message)
}

// find returns the session of the request; if there is none, it writes the response and returns nil.
func (n *native) find(w http.ResponseWriter, r *http.Request) *session {
	id := r.Header.Get("Mcp-Session-Id")
	if id == "" {
		text(w, http.StatusBadRequest, "Missing or invalid Mcp-Session-Id header")
		return nil
	}
	n.lock.Lock()
	defer n.lock.Unlock()
	held := n.sessions[id]
	if held == nil {
		text(w, http.StatusNotFound, "Session not found or expired")
	}
	return held
}

func (n *native) initialize(w http.ResponseWriter, message jsonrpc.Message) {
	here, there := mcp.NewInMemoryTransports()
	if _, err := n.server.Connect(context.Background(), there, nil); err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	connection, err := here.Connect(context.Background())
	if err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	held := &session{connection: connection}
	response, err := ask(held, message)
	if err != nil || response.Error != nil {
		text(w, http.StatusBadRequest, "initialize failed")
		return
	}
	var result struct{ ProtocolVersion string }
	_ = json.Unmarshal(response.Result, &result)
	held.version = result.ProtocolVersion
	id := rand.Text()
	n.lock.Lock()
	n.sessions[id] = held
	n.lock.Unlock()
	w.Header().Set("Mcp-Session-Id", id)
	w.Header().Set("MCP-Protocol-Version", held.version)
	write(w, response)
}

// ask sends a request and waits for its response; it drops other messages of the server.
func ask(held *session, message jsonrpc.Message) (*jsonrpc.Response, error) {
	if err := held.connection.Write(context.Background(), message); err != nil {
		return nil, err
	}
	for {
		received, err := held.connection.Read(context.Background())
		if err != nil {
			return nil, err
		}
		if response, ok := received.(*jsonrpc.Response); ok {
			return response, nil
		}
	}
}

func answer(w http.ResponseWriter, held *session, message jsonrpc.Message) {
	if request, ok := message.(*jsonrpc.Request); ok && !request.ID.IsValid() {
		if err := held.connection.Write(context.Background(), message); err != nil {
			text(w, http.StatusNotFound, "Session not found or expired")
			return
		}
		w.WriteHeader(http.StatusAccepted)
		return
	}
	response, err := ask(held, message)
	if err != nil {
		text(w, http.StatusNotFound, "Session not found or expired")
		return
	}
	write(w, response)
}

func write(w http.ResponseWriter, response *jsonrpc.Response) {
	body, err := jsonrpc.EncodeMessage(response)
	if err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

func serveHTTP(port string) error {
	token := os.Getenv("VESTIGE_AUTH_TOKEN")
	if token == "" {
		return errors.New("VESTIGE_AUTH_TOKEN is not set")
	}
	host := os.Getenv("VESTIGE_HTTP_BIND")
	if host == "" {
		host = "127.0.0.1"
	}
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	log.Printf("vestige %s serves MCP on %s, memory in %s", version, listener.Addr(), os.Getenv("VESTIGE_DATA_DIR"))
	server := &http.Server{
		Handler:           &native{token: token, server: newServer(db), sessions: map[string]*session{}},
		ReadHeaderTimeout: time.Minute,
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		ended, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ended)
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-drained
	return nil
}
