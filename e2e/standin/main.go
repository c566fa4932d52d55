// A stand-in for the programs of a Vestige release, which cannot be downloaded where the tests run. Its data directory
// and its names of files and tables are those of Vestige 3.x.
//
//	vestige-mcp                                an MCP server over stdio that stores memories in SQLite
//	vestige serve --port N                     the same over Streamable HTTP (native.go)
//	vestige restore FILE                       imports an export into an empty store
//	vestige portable-import --merge FILE       imports a portable archive
//	vestige-restore FILE                       imports a list of {"type", "text"}
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	_ "modernc.org/sqlite"
)

const version = "3.1.0"

const schema = `
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY);
INSERT OR IGNORE INTO schema_version VALUES (1);
CREATE TABLE IF NOT EXISTS knowledge_nodes (
  id INTEGER PRIMARY KEY, content TEXT NOT NULL, node_type TEXT NOT NULL DEFAULT 'fact', created_at TEXT NOT NULL);`

func open() (*sql.DB, error) {
	directory := os.Getenv("VESTIGE_DATA_DIR")
	if directory == "" {
		return nil, errors.New("VESTIGE_DATA_DIR is not set")
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(directory, "vestige.db")+
		"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.Exec(schema)
	return db, err
}

func ingest(db *sql.DB, content, nodeType string) (int64, error) {
	if nodeType == "" {
		nodeType = "fact"
	}
	result, err := db.Exec("INSERT INTO knowledge_nodes (content, node_type, created_at) VALUES (?, ?, ?)",
		content, nodeType, time.Now().UTC().Format(time.RFC3339Nano))
	if err != nil {
		return 0, err
	}
	return result.LastInsertId()
}

type ingestArguments struct {
	Content string `json:"content" jsonschema:"what to remember"`
}

type ingestResult struct {
	ID int64 `json:"id"`
}

type searchArguments struct {
	Query string `json:"query" jsonschema:"text that the memories contain"`
	Limit int    `json:"limit,omitempty" jsonschema:"how many at most"`
}

type searchHit struct {
	ID      string `json:"id"`
	Content string `json:"content"`
}

// Vestige returns only results; memories has just their contents.
type searchResult struct {
	Memories []string    `json:"memories"`
	Results  []searchHit `json:"results"`
}

type statusResult struct {
	TotalMemories int `json:"totalMemories"`
}

type backupResult struct {
	Path string `json:"path"`
}

func newServer(db *sql.DB) *mcp.Server {
	server := mcp.NewServer(&mcp.Implementation{Name: "vestige", Version: version}, nil)
	reads := &mcp.ToolAnnotations{ReadOnlyHint: true}

	mcp.AddTool(server, &mcp.Tool{Name: "smart_ingest", Description: "Remembers a text"},
		func(_ context.Context, _ *mcp.CallToolRequest, arguments ingestArguments) (*mcp.CallToolResult, ingestResult, error) {
			id, err := ingest(db, arguments.Content, "")
			return nil, ingestResult{id}, err
		})

	mcp.AddTool(server, &mcp.Tool{Name: "search", Description: "Finds memories by text", Annotations: reads},
		func(_ context.Context, _ *mcp.CallToolRequest, arguments searchArguments) (*mcp.CallToolResult, searchResult, error) {
			if arguments.Limit <= 0 {
				arguments.Limit = 10
			}
			rows, err := db.Query("SELECT CAST(id AS TEXT), content FROM knowledge_nodes WHERE instr(content, ?) > 0 ORDER BY id DESC LIMIT ?",
				arguments.Query, arguments.Limit)
			if err != nil {
				return nil, searchResult{}, err
			}
			defer rows.Close()
			found := searchResult{Memories: []string{}, Results: []searchHit{}}
			for rows.Next() {
				var hit searchHit
				if err := rows.Scan(&hit.ID, &hit.Content); err != nil {
					return nil, searchResult{}, err
				}
				found.Memories = append(found.Memories, hit.Content)
				found.Results = append(found.Results, hit)
			}
			return nil, found, rows.Err()
		})

	mcp.AddTool(server, &mcp.Tool{Name: "system_status", Description: "Counts the memories", Annotations: reads},
		func(_ context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, statusResult, error) {
			var status statusResult
			err := db.QueryRow("SELECT count(*) FROM knowledge_nodes").Scan(&status.TotalMemories)
			return nil, status, err
		})

	mcp.AddTool(server, &mcp.Tool{Name: "backup", Description: "Writes the memory to an SQLite file"},
		func(_ context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, backupResult, error) {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, backupResult{}, err
			}
			directory := filepath.Join(home, ".local", "share", "backups")
			if err := os.MkdirAll(directory, 0o755); err != nil {
				return nil, backupResult{}, err
			}
			path := filepath.Join(directory, fmt.Sprintf("vestige-%d.db", time.Now().UnixNano()))
			_, err = db.Exec("VACUUM INTO ?", path)
			return nil, backupResult{path}, err
		})

	return server
}

func serve() error {
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	log.Printf("vestige-mcp %s, memory in %s", version, os.Getenv("VESTIGE_DATA_DIR"))
	return newServer(db).Run(context.Background(), &mcp.StdioTransport{})
}

type memory struct {
	Content  string
	NodeType string
}

// add writes memories to the store, which must be empty if onEmptyStore is set.
func add(memories []memory, onEmptyStore bool) error {
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	var count int
	if err := db.QueryRow("SELECT count(*) FROM knowledge_nodes").Scan(&count); err != nil {
		return err
	}
	if onEmptyStore && count > 0 {
		return errors.New("the store is not empty")
	}
	for _, memory := range memories {
		if _, err := ingest(db, memory.Content, memory.NodeType); err != nil {
			return err
		}
	}
	fmt.Printf("Restore complete: %d memories\n", len(memories))
	return nil
}

func restoreExport(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var export []memory
	if err := json.Unmarshal(text, &export); err != nil {
		return err
	}
	return add(export, true)
}

func importArchive(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var archive struct {
		ArchiveFormat string
		Tables        []struct {
			Name    string
			Columns []string
			Rows    [][]struct{ Type, Value string }
		}
	}
	if err := json.Unmarshal(text, &archive); err != nil {
		return err
	}
	if archive.ArchiveFormat != "vestige.portable.v1" {
		return fmt.Errorf("unsupported archive format %q", archive.ArchiveFormat)
	}
	var memories []memory
	for _, table := range archive.Tables {
		at := slices.Index(table.Columns, "content")
		if table.Name != "knowledge_nodes" || at < 0 {
			continue
		}
		for _, row := range table.Rows {
			memories = append(memories, memory{Content: row[at].Value})
		}
	}
	return add(memories, false)
}

func restore(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var wrapped []struct{ Type, Text string }
	if err := json.Unmarshal(text, &wrapped); err != nil {
		return err
	}
	if len(wrapped) == 0 {
		return errors.New("the export is empty")
	}
	if wrapped[0].Type == "" {
		return errors.New("missing field `type`")
	}
	var export struct{ Results []memory }
	if err := json.Unmarshal([]byte(wrapped[0].Text), &export); err != nil {
		return err
	}
	return add(export.Results, false)
}

func run(arguments []string) error {
	name := filepath.Base(arguments[0])
	switch {
	case len(arguments) == 2 && arguments[1] == "--version":
		fmt.Println(name, version)
		return nil
	case name == "vestige-mcp" && len(arguments) == 1:
		return serve()
	case name == "vestige-restore" && len(arguments) == 2:
		return restore(arguments[1])
	case name == "vestige" && len(arguments) == 4 && arguments[1] == "serve" && arguments[2] == "--port":
		return serveHTTP(arguments[3])
	case name == "vestige" && len(arguments) == 3 && arguments[1] == "restore":
		return restoreExport(arguments[2])
	case name == "vestige" && len(arguments) == 4 && arguments[1] == "portable-import" && arguments[2] == "--merge":
		return importArchive(arguments[3])
	default:
		return fmt.Errorf("unknown words: %v", arguments)
	}
}

func main() {
	if err := run(os.Args); err != nil {
		log.Fatal(err)
	}
}
