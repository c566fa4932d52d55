/** The message of each failure of a call: what happened, and what an agent or an operator can do. */

import type { Credential } from "./access.ts";
import { asObject, asString } from "./json.ts";
import { CONFIG_PATH } from "./settings.ts";

/** A call failed. The message never contains the token. */
export class VestigeError extends Error {
  override readonly name = "VestigeError";
}

/** The arguments of a call are wrong. OpenClaw recognises the name and answers 400. */
export class ToolInputError extends Error {
  override readonly name = "ToolInputError";
}

/** The agent may not do this. OpenClaw recognises the name and answers 403. */
export class ToolAuthorizationError extends Error {
  override readonly name = "ToolAuthorizationError";
}

const MAY_HAVE_RUN =
  " The call may have run: check with vestige_search before you repeat it.";

/** Why there is no HTTP response. */
export function describeFetchFailure(failure: unknown, endpoint: string): string {
  const { code, host } = failureCode(failure, endpoint);
  switch (code) {
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return `There is no host named ${host}: check ${CONFIG_PATH}.serverUrl.`;
    case "ECONNREFUSED":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "UND_ERR_CONNECT_TIMEOUT":
      return `Cannot connect to ${endpoint}: check that vestige-bridge runs, and check ${CONFIG_PATH}.serverUrl.`;
    case "ECONNRESET":
    case "EPIPE":
    case "UND_ERR_SOCKET":
      return `vestige-bridge closed the connection before it answered; it may be restarting.${MAY_HAVE_RUN}`;
    default:
      return `vestige-bridge at ${endpoint} could not be reached (${code}).`;
  }
}

export function describeTimeout(seconds: number): string {
  return `Vestige did not answer within ${seconds} seconds.${MAY_HAVE_RUN}`;
}

/** Why an HTTP response is an error. `body` is the parsed JSON, if there is any; `credential` is that of the request. */
export function describeRefusal(status: number, body: unknown, { token, setting }: Credential): string {
  const error = asObject(asObject(body)["error"]);
  const message = asString(error["message"]);
  const hint = asObject(error["data"])["outcome"] === "unknown" ? MAY_HAVE_RUN : "";
  if (status === 401) {
    // OpenClaw masks the text after "token:" in an error, so these messages have no colon after that word.
    return token === undefined
      ? `Set ${setting}, because vestige-bridge requires a token.`
      : `Set a valid token in ${setting}, because vestige-bridge does not accept this one.`;
  }
  if (status >= 300 && status < 400) {
    return `The address answers with a redirect: set ${CONFIG_PATH}.serverUrl to the address of vestige-bridge itself.`;
  }
  if (message === undefined) {
    return `Something other than vestige-bridge answered (HTTP ${status}): check ${CONFIG_PATH}.serverUrl.`;
  }
  switch (status) {
    case 403:
      return `vestige-bridge does not allow this: ${sentence(message)} The operator of vestige-bridge sets what the token in ${setting} may do.`;
    case 404:
      return `vestige-bridge has no such path: ${sentence(message)} Check ${CONFIG_PATH}.serverUrl.`;
    case 413:
      return `This is too large for Vestige: ${sentence(message)} Send less at once.`;
    case 429:
      return `A limit of the token in ${setting} is reached: ${sentence(message)} The call did not run; try again later.`;
    case 500:
      return `vestige-bridge failed: ${sentence(message)} Its log has the cause.`;
    case 502:
      return `Vestige gave no valid answer: ${sentence(message)}${hint}`;
    case 503:
      return `Vestige is not available: ${sentence(message)}${hint || " The call did not run; try again in a moment."}`;
    case 504:
      return `Vestige did not answer in time: ${sentence(message)}${hint}`;
    default:
      return `Vestige rejected the call: ${sentence(message)}${hint}`;
  }
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** fetch puts the reason into `cause`, and several reasons into an AggregateError. */
function failureCode(failure: unknown, endpoint: string): { code: string; host: string } {
  let cause: unknown = failure;
  while (cause instanceof Error && (cause as { code?: unknown }).code === undefined) {
    cause = cause instanceof AggregateError ? (cause.errors as unknown[])[0] : cause.cause;
  }
  const code = asString((cause as { code?: unknown } | undefined)?.code) ?? "no reason given";
  return { code, host: URL.parse(endpoint)?.hostname ?? endpoint };
}
