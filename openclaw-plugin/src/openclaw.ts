/**
 * The part of OpenClaw's plugin API that this plugin uses.
 *
 * OpenClaw passes the API to `register()` at run time, so nothing is imported from it and the plugin has no
 * dependency.
 */

export interface Logger {
  info(message: string): void;
  warn(message: string): void;
}

export interface ToolContext {
  agentId?: string;
}

export interface AgentToolResult {
  content: { type: "text"; text: string }[];
  details: Record<string, unknown>;
}

export interface AgentTool {
  name: string;
  label: string;
  description: string;
  parameters: Record<string, unknown>;
  /** Marks results as text from others. */
  resultContentSource?: "network";
  execute(callId: string, params: unknown, signal?: AbortSignal): Promise<AgentToolResult>;
}

export interface BeforePromptBuildEvent {
  prompt: string;
  /** The user's request without the history; empty if there is none. */
  currentUserMessage?: string;
}

export interface BeforePromptBuildContext {
  agentId?: string;
  trigger?: string;
  inputProvenance?: { kind?: string };
}

/** The part of a commander command that the CLI uses. */
export interface Command {
  command(nameAndArguments: string): Command;
  description(text: string): Command;
  option(flags: string, description: string): Command;
  action(run: (...args: unknown[]) => Promise<void>): Command;
}

export interface PluginApi {
  config: unknown;
  pluginConfig?: unknown;
  registrationMode: string;
  logger: Logger;
  registerTool(
    /** Returns null for an agent that does not get the tool. */
    tool: (context: ToolContext) => AgentTool | null,
    options: { name: string; optional?: boolean },
  ): void;
  registerCli(
    register: (context: { program: Command }) => void,
    options: { descriptors: { name: string; description: string; hasSubcommands: boolean }[] },
  ): void;
  on(
    hook: "before_prompt_build",
    handler: (
      event: BeforePromptBuildEvent,
      context: BeforePromptBuildContext,
    ) => Promise<{ prependContext: string } | undefined>,
  ): void;
}
