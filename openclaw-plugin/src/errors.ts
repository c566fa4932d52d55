/** Every way a call can fail, as one sentence that tells an agent or an operator what to do. */

import type { Credential } from "./access.ts";
import { asObject, asString } from "./json.ts";
import { CONFIG_PATH } from "./settings.ts";

/** A call that brought no answer. The message never contains the token. */
export class VestigeError extends Error {
  override readonly name = "VestigeError";
}

/** What the caller passed cannot be right. OpenClaw recognises the name and answers 400. */
export class ToolInputError extends Error {
  override readonly name = "ToolInputError";
}

/** What the agent may not do. OpenClaw recognises the name and answers 403. */
export class ToolAuthorizationError extends Error {
  override readonly name = "ToolAuthorizationError";
}

const MAY_HAVE_RUN =
  " The call may have been carried out all the same: look with vestige_search before you repeat it.";

/** Why no HTTP answer came at all. */
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
      return `Nothing answers at ${endpoint}: see that vestige-bridge runs, and check ${CONFIG_PATH}.serverUrl.`;
    case "ECONNRESET":
    case "EPIPE":
    case "UND_ERR_SOCKET":
      return `vestige-bridge hung up before it answered; it may be restarting.${MAY_HAVE_RUN}`;
    default:
      return `vestige-bridge at ${endpoint} could not be reached (${code}).`;
  }
}

export function describeTimeout(seconds: number): string {
  return `Vestige did not answer within ${seconds} seconds.${MAY_HAVE_RUN}`;
}

/** Why an HTTP answer is an error. `body` is the parsed JSON, if it was any; `credential` is what the request showed. */
export function describeRefusal(status: number, body: unknown, { token, setting }: Credential): string {
  const error = asObject(asObject(body)["error"]);
  const message = asString(error["message"]);
  const hint = asObject(error["data"])["outcome"] === "unknown" ? MAY_HAVE_RUN : "";
  if (status === 401) {
    // OpenClaw masks whatever follows "token:" in an error, so no colon comes after that word.
    return token === undefined
      ? `Put a token into ${setting}, since vestige-bridge wants one.`
      : `Put a valid token into ${setting}, since vestige-bridge does not accept this one.`;
  }
  if (status >= 300 && status < 400) {
    return `The address answers with a redirect: set ${CONFIG_PATH}.serverUrl to where vestige-bridge really is.`;
  }
  if (message === undefined) {
    return `Something other than vestige-bridge answered (HTTP ${status}): check ${CONFIG_PATH}.serverUrl.`;
  }
  switch (status) {
    case 403:
      return `vestige-bridge does not allow this: ${sentence(message)} Whoever runs it decides what the token in ${setting} may do.`;
    case 404:
      return `vestige-bridge has no such address: ${sentence(message)} Check ${CONFIG_PATH}.serverUrl.`;
    case 413:
      return `That is too large for Vestige: ${sentence(message)} Store less at once.`;
    case 429:
      return `vestige-bridge allows no more for now: ${sentence(message)} Nothing was changed; try again later.`;
    case 500:
      return `vestige-bridge cannot serve: ${sentence(message)} Whoever runs it finds the cause in its log.`;
    case 502:
      return `Vestige broke off in the middle: ${sentence(message)}${hint}`;
    case 503:
      return `Vestige is starting or away: ${sentence(message)}${hint || " Nothing was changed; try again in a moment."}`;
    case 504:
      return `Vestige took too long: ${sentence(message)}${hint}`;
    default:
      return `Vestige refused the call: ${sentence(message)}${hint}`;
  }
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** fetch hides the reason in `cause`, and several of them in an AggregateError. */
function failureCode(failure: unknown, endpoint: string): { code: string; host: string } {
  let cause: unknown = failure;
  while (cause instanceof Error && (cause as { code?: unknown }).code === undefined) {
    cause = cause instanceof AggregateError ? (cause.errors as unknown[])[0] : cause.cause;
  }
  const code = asString((cause as { code?: unknown } | undefined)?.code) ?? "no reason given";
  return { code, host: URL.parse(endpoint)?.hostname ?? endpoint };
}
