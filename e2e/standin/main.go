// Stands in for the programs of a Vestige release, which cannot be downloaded where the tests run: under the name
// vestige-mcp an MCP server over stdio with its memory in SQLite, under the name vestige-restore a tool that adds the
// memories of a JSON export, as Vestige's does. Data directory, file and table names are those of Vestige's 3.x line.
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

type searchResult struct {
	Memories []string `json:"memories"`
}

type statusResult struct {
	TotalMemories int `json:"totalMemories"`
}

type backupResult struct {
	Path string `json:"path"`
}

func serve() error {
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
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
			rows, err := db.Query("SELECT content FROM knowledge_nodes WHERE instr(content, ?) > 0 ORDER BY id DESC LIMIT ?",
				arguments.Query, arguments.Limit)
			if err != nil {
				return nil, searchResult{}, err
			}
			defer rows.Close()
			found := searchResult{Memories: []string{}}
			for rows.Next() {
				var content string
				if err := rows.Scan(&content); err != nil {
					return nil, searchResult{}, err
				}
				found.Memories = append(found.Memories, content)
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

	log.Printf("vestige-mcp %s, memory in %s", version, os.Getenv("VESTIGE_DATA_DIR"))
	return server.Run(context.Background(), &mcp.StdioTransport{})
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
	var export struct {
		Results []struct {
			Content  string
			NodeType string
		}
	}
	if err := json.Unmarshal([]byte(wrapped[0].Text), &export); err != nil {
		return err
	}
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	for _, memory := range export.Results {
		if _, err := ingest(db, memory.Content, memory.NodeType); err != nil {
			return err
		}
	}
	fmt.Printf("Restore complete: %d memories\n", len(export.Results))
	return nil
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
	default:
		return fmt.Errorf("usage: vestige-mcp | vestige-restore FILE.json, not %v", arguments)
	}
}

func main() {
	if err := run(os.Args); err != nil {
		log.Fatal(err)
	}
}
