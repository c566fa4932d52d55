/** Reading values of unknown shape. */

export type JsonObject = Record<string, unknown>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value as an object, or an empty one. */
export function asObject(value: unknown): JsonObject {
  return isObject(value) ? value : {};
}

export function asArray(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

export function asString(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}

/** The strings of a list. */
export function asTexts(value: unknown): string[] {
  return asArray(value).filter((item) => typeof item === "string");
}

/**
 * The first `count` characters of the text, by code points. A text that is cut by UTF-16 length can end in an unpaired
 * surrogate, which strict JSON parsers such as Vestige's reject.
 */
export function firstCharacters(text: string, count: number): string {
  let end = 0;
  let taken = 0;
  for (const character of text) {
    if (taken++ === count) break;
    end += character.length;
  }
  return text.slice(0, end);
}

/** The parsed text, or undefined when it is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
