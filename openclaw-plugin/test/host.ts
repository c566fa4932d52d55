/** What OpenClaw gives a plugin, recording what the plugin registers. */

import type { AgentTool, AgentToolResult, Command, PluginApi, ToolContext } from "../src/openclaw.ts";
import plugin from "../src/index.ts";

type ToolFactory = (context: ToolContext) => AgentTool | null;
type RecallHook = Parameters<PluginApi["on"]>[1];

export class Host {
  readonly tools = new Map<string, { create: ToolFactory; optional: boolean }>();
  readonly messages: string[] = [];
  readonly warnings: string[] = [];
  recall: RecallHook | undefined;

  /** Loads the plugin as the gateway does. */
  static load(pluginConfig: unknown, entry: unknown = {}): Host {
    const host = new Host();
    plugin.register({
      config: { plugins: { entries: { vestige: entry } } },
      pluginConfig,
      registrationMode: "full",
      logger: { info: (message) => host.messages.push(message), warn: (message) => host.warnings.push(message) },
      registerTool: (create, { name, optional }) => host.tools.set(name, { create, optional: optional ?? false }),
      registerCli: (register) => { register({ program: inertCommand }); },
      on: (_hook, handler) => (host.recall = handler),
    });
    return host;
  }

  /** The names of the tools that an agent is offered. */
  offered(agentId: string): string[] {
    return [...this.tools].filter(([, { create }]) => create({ agentId }) !== null).map(([name]) => name);
  }

  tool(name: string, context: ToolContext = {}): AgentTool {
    const tool = this.tools.get(name)?.create(context);
    if (tool === undefined || tool === null) throw new Error(`no tool ${name}`);
    return tool;
  }

  async call(name: string, params: unknown, context: ToolContext = {}, signal?: AbortSignal): Promise<AgentToolResult> {
    return this.tool(name, context).execute("call-1", params, signal);
  }

  async text(name: string, params: unknown): Promise<string> {
    return (await this.call(name, params)).content.map(({ text }) => text).join("\n");
  }
}

const inertCommand: Command = {
  command: () => inertCommand,
  description: () => inertCommand,
  option: () => inertCommand,
  action: () => inertCommand,
};
