import assert from "node:assert/strict";
import { test } from "node:test";
import { readMemories } from "../src/memories.ts";

test("a score of Vestige's own is taken over, and the best comes first", () => {
  const text = JSON.stringify({
    results: [
      { id: "a", content: "first", combinedScore: 0.4 },
      { id: "b", content: "second", combinedScore: 0.9 },
    ],
  });
  assert.deepEqual(readMemories([text], "anything"), [
    { id: "b", content: "second", score: 0.9 },
    { id: "a", content: "first", score: 0.4 },
  ]);
});

test("without one, the score is the part of the query's words that the memory contains", () => {
  const text = JSON.stringify({ entities: [{ name: "n", observations: ["Billing runs on PostgreSQL", "tag: shop"] }] });
  assert.deepEqual(readMemories([text], "Which billing database?"), [
    { id: "n", content: "Billing runs on PostgreSQL\ntag: shop", score: 1 / 3 },
  ]);
});

test("a query of short words only is looked for as it is", () => {
  const text = JSON.stringify({ entities: [{ name: "n", observations: ["The CI runs on two cores"] }] });
  assert.equal(readMemories([text], "CI")[0]?.score, 1);
});

test("a memory that several answers hold is listed once", () => {
  const text = JSON.stringify({ nodes: [{ id: "a", content: "x" }] });
  assert.equal(readMemories([text, text], "x").length, 1);
});

test("an answer that is not a list of memories holds none", () => {
  assert.deepEqual(readMemories(["plain words", '{"results":[{"id":1}],"nodes":"?"}', "[]"], "x"), []);
});

test("an entity without observations is its name and its type", () => {
  const text = JSON.stringify({ entities: [{ name: "sky", entityType: "fact", observations: [] }] });
  assert.deepEqual(readMemories([text], "sky"), [{ id: "sky", content: "sky, fact", score: 1 }]);
});
